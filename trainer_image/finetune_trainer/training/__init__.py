"""The training loop: TRL's trainer for each objective, and a callback that reports, evaluates and saves.

It knows neither how an adapter is verified nor how it is published.
"""
