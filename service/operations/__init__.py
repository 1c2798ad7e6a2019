"""Encode, decode, generate and mix: what the API does, without HTTP."""
