"""The models on one device, as the engine calls them."""
