"""Turns requests into batches of tensors and back."""
