"""The public and the admin HTTP application."""
