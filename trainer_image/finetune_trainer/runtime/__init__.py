"""The process of an attempt: its configuration, log, signals, environment, and the reason with which it ends.

It knows neither torch nor what is trained; every other room may import it.
"""
