"""``titok pull``: downloads the weights that the service needs, and checks them."""

import typer

from service.cli.options import load_settings


def pull() -> None:
    """Download the weights that the settings name, and check that they load.

    Weights of the Hugging Face hub are kept in HF_HOME. A service with the same settings and HF_HUB_OFFLINE=1 then starts
    without a network.

    Example:

        TITOK_TOKENIZER=titok-l-32 titok pull
    """
    from service.inference.loading import load_models  # torch is slow to import

    # On the CPU, whatever the service runs on: formats of GPUs are not possible there, and change no file.
    settings = load_settings().model_copy(update={"dtype": "float32"})
    tokenizer, generator = load_models(settings, "cpu")
    models = {"tokenizer": tokenizer, "generator": generator}
    for kind, model in models.items():
        if model is not None:
            digest = model.revision.partition("-")[0]  # what follows depends on the service's settings
            typer.echo(f"{kind} {model.name}: {model.source}, weights {digest}")
