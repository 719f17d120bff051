"""The training loop: TRL's trainer for each objective, and what happens beside its steps.

It knows neither how an adapter is verified nor how it is published.
"""
