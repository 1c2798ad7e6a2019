"""TiTok's first training stage: predicting the codes of a frozen MaskGIT-VQGAN for the same image.

Source: arXiv 2406.07550, section 3.3 (proxy codes); the loss is cross-entropy over the 2-D codes plus the quantizer's.
"""

import torch
from torch import Tensor

from models.data.datasets import ImageDataset
from models.errors import ConfigError
from models.networks.maskgit_vqgan import MaskGITVQGAN
from models.networks.titok import TiTok
from models.training.config import TokenizerRun
from models.training.losses import proxy_code_loss
from models.training.pretrained import build_tokenizer
from models.training.task import Step
from models.training.tokenizer import Reconstructed, TokenizerTask


class ProxyCodeTask(TokenizerTask):
    """The recipe ``stage-1``; ``vqgan`` is the frozen network whose codes are the targets."""

    def __init__(
        self,
        run: TokenizerRun,
        train: ImageDataset,
        validation: ImageDataset,
        vqgan: MaskGITVQGAN,
        device: torch.device | str = "cpu",
    ) -> None:
        if not run.network.is_legacy or run.network.finetune_decoder:
            raise ConfigError("recipe stage-1 needs network.is_legacy = true and network.finetune_decoder = false")
        super().__init__(run, build_tokenizer(run), train, validation, device)
        self.vqgan = vqgan.to(self.device)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Cross-entropy of the proxy codes, and the quantizer's losses."""
        images = self.batch(step)
        with torch.no_grad():
            targets = self.vqgan.encode(images).ids
        self.network.train()
        codes, parts = self.quantize(images, step)
        codes, present = self.drop_tail(codes, step)
        with self.autocast():
            logits = self.network.decoder(codes, present)
        proxy = proxy_code_loss(logits, targets)
        return {"loss": proxy + self.bottleneck_loss(parts), "proxy": proxy, **parts}

    def reconstruct(self, network: TiTok, images: Tensor) -> Reconstructed:
        """Decodes the likeliest 2-D codes with the frozen VQGAN, clamped to [0, 1]."""
        ids = network.encode(images).ids
        return Reconstructed(self.vqgan.decode(_likeliest(network, ids)).clamp(0.0, 1.0), ids)

    def more_metrics(self, network: TiTok, images: Tensor, outputs: Reconstructed) -> dict[str, Tensor]:
        """How often the likeliest code is the VQGAN's."""
        assert outputs.ids is not None  # noqa: S101  (a stage-1 network has codes)
        correct = _likeliest(network, outputs.ids) == self.vqgan.encode(images).ids
        return {"proxy_accuracy": correct.float().mean(dim=1)}


def _likeliest(network: TiTok, ids: Tensor) -> Tensor:
    """Ids int64 [B, K] -> the most probable 2-D codes int64 [B, N]."""
    codes: Tensor = network.decoder(network.quantize.lookup(ids)).argmax(dim=-1)
    return codes
