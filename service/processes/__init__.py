"""The processes of the service: supervisor, front ends, workers."""
