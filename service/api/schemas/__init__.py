"""The JSON bodies of the API, a module for each group of routes."""
