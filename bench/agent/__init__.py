"""Measure what the agent costs an inference pod in which nothing changes: memory and CPU time."""
