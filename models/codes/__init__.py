"""Token ids as packed bits, as text, and as files of packed codes; latents as bytes and ``.npy`` files."""
