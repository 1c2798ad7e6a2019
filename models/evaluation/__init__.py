"""How good reconstructions and generated images are."""
