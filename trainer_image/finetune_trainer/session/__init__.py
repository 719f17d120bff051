"""Hold the state of one attempt (settings, inputs, plan, results), and report its progress.

It decides nothing about the training.
"""
