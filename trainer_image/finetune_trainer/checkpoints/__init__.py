"""Store checkpoints, so that an attempt continues exactly where an earlier one stopped.

It knows neither the training loop nor how adapters are published.
"""
