"""Network of a tokenizer: that of its variant or of its checkpoint's configuration, with the checkpoint's weights."""

from models.checkpoints.configuration import tokenizer_config
from models.checkpoints.loading import Checkpoint, load_strictly
from models.checkpoints.registry import TOKENIZERS
from models.errors import CheckpointError
from models.networks.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from models.networks.skip_init import skip_init
from models.networks.titok import TiTok


def load_tokenizer_network(name: str, checkpoint: Checkpoint) -> TiTok | MaskGITVQGAN:
    """The network of a variant, or of the checkpoint's ``config.json``, with the checkpoint's weights.

    Raises ``CheckpointError`` or ``ConfigError``.
    """
    with skip_init():
        network = _build_network(name, checkpoint)
    load_strictly(network, checkpoint)
    return network


def _build_network(name: str, checkpoint: Checkpoint) -> TiTok | MaskGITVQGAN:
    published = TOKENIZERS[name].config if name in TOKENIZERS else None
    if isinstance(published, MaskGITVQGANConfig):
        return MaskGITVQGAN(published)
    if checkpoint.config is not None:
        return TiTok(tokenizer_config(checkpoint.config))
    if published is not None:
        return TiTok(published)
    raise CheckpointError(f"{checkpoint.source} has no config.json beside it, and {name!r} is not a published variant")
