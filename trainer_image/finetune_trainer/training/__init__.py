"""Train the adapter with TRL's trainer of the objective and a callback that reports and evaluates.

It knows neither how an adapter is verified nor how it is published.
"""
