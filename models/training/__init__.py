"""Trains tokenizers and generators; ``titok train`` is its command. Needs the ``train`` extra."""
