"""How good a model is: held-out loss, forgetting, sample answers, the gate, and the proof of the saved adapter.

It knows neither the training loop nor where adapters are stored.
"""
