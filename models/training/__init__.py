"""Trains tokenizers and generators. ``python -m models.training --help`` says how; needs the ``train`` extra."""
