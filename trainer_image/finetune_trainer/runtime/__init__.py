"""Run the process of an attempt: configuration, log, signals, environment, and the reason with which it ends.

It knows neither torch nor what is trained; every other package of the trainer may import it.
"""
