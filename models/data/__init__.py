"""Image datasets for training and evaluation, read from class folders or WebDataset shards."""
