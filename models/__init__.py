"""The networks, and everything that decides which numbers come out. No HTTP, no queues, no Redis."""

from models.generation import Generator, load_generator
from models.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Generator", "Tokenizer", "load_generator", "load_tokenizer"]
