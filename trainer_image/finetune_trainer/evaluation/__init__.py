"""Measure models: held-out loss, forgetting, sample answers, the gate, and the verification of the saved adapter.

It knows neither the training loop nor where adapters are stored.
"""
