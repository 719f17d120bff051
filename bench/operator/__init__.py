"""Measure how fast the operator reacts, and how many writes to the API server a FineTuneJob costs."""
