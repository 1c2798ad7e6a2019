"""The networks, and everything that decides which numbers come out. No HTTP, no queues, no Redis."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.generation import Generator, load_generator
    from models.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Generator", "Tokenizer", "load_generator", "load_tokenizer"]

if not TYPE_CHECKING:  # a checker that saw __getattr__ would believe in any name
    _HOMES = {
        "Generator": "models.generation",
        "Tokenizer": "models.tokenizer",
        "load_generator": "models.generation",
        "load_tokenizer": "models.tokenizer",
    }

    def __getattr__(name: str) -> object:
        """Imports torch with the first name that needs it: a process that runs no network never does (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
