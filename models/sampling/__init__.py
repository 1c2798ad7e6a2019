"""MaskGIT sampling: settings of an image, and one sampling step for a batch."""
