"""Photographs to train on and to measure with, read from where people keep them."""
