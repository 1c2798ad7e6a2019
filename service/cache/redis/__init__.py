"""A Redis client with time limits and a circuit breaker, and how to go through the keys of a server."""
