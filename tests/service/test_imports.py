"""What the processes import: torch where networks run, Ray where a cluster is asked for, codecs only for images."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRONT_END = (
    "import service.processes.front_end, service.api.routes.encode, service.api.routes.reconstruct, "
    "service.inference.model_info"
)


@pytest.mark.parametrize(
    "statement",
    [
        FRONT_END,
        "import service.processes.serve, service.processes.supervisor",
        "import service.processes.worker",
        "import service.settings",
        "import models, models.errors, models.sampling.settings, models.checkpoints.bundled",
        "import sys; sys.argv = ['titok', '--help']; from service.cli.main import app; app(standalone_mode=False)",
    ],
    ids=[
        "front end",
        "supervisor",
        "a worker before it opens its device",
        "settings",
        "information on the models",
        "titok --help",
    ],
)
def test_what_runs_no_network_does_not_import_torch_or_ray(statement: str) -> None:
    probe = f"{statement}\nimport sys\nassert not {{'torch', 'ray'}} & set(sys.modules)"
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("module", "later"),
    [
        ("service.cli.main", ["numpy", "PIL", "fsspec", "zstandard"]),  # until a command needs them
        ("service.processes.supervisor", ["fastapi", "starlette"]),  # until it has started its children
    ],
)
def test_what_is_imported_later(module: str, later: list[str]) -> None:
    probe = f"import sys, {module}\nassert not set({later}) & set(sys.modules)"
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_package_gives_its_loaders_and_nothing_it_does_not_have() -> None:
    import models

    assert set(models.__all__) <= set(dir(models))
    assert models.load_tokenizer.__module__ == "models.tokenizer"
    assert models.Generator.__module__ == "models.generation"
    with pytest.raises(AttributeError, match="no attribute 'load_everything'"):
        models.load_everything  # type: ignore[attr-defined]  # noqa: B018
