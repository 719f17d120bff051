"""Fakes, servers and tiny models that tests and benchmarks share. Nothing here may import `tests` or `bench`."""
