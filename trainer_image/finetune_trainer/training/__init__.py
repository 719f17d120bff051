"""Train the adapter: TRL's trainer of the objective, with a callback that reports and evaluates.

It knows neither how an adapter is verified nor how it is published.
"""
