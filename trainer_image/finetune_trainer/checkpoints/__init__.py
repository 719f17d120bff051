"""Checkpoints in the storage, and everything by which an attempt goes on exactly where an earlier one stopped.

It knows neither the training loop nor how adapters are published.
"""
