"""Measure models (held-out loss, forgetting, samples), apply the gate, and verify the saved adapter.

It knows neither the training loop nor where adapters are stored.
"""
