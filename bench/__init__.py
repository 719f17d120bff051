"""Measure the operator and the trainer. Each benchmark prints a table, or JSON with ``--output json``."""
