"""Image tokenizers and generators: networks, checkpoints, training and evaluation, without HTTP, queues or Redis."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.generation import Generator, load_generator
    from models.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Generator", "Tokenizer", "load_generator", "load_tokenizer"]

if not TYPE_CHECKING:  # with __getattr__, a type checker would accept any name
    _MODULES = {
        "Generator": "models.generation",
        "Tokenizer": "models.tokenizer",
        "load_generator": "models.generation",
        "load_tokenizer": "models.tokenizer",
    }

    def __getattr__(name: str) -> object:
        """Imports torch only when one of the names is used (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
