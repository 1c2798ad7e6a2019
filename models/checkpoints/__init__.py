"""Checkpoint files: the variants and where their weights are published, loading, configuration, verification."""
