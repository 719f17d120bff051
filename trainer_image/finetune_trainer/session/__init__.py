"""What one attempt works with (settings, inputs, plan) and what it has achieved, and who is told of it.

It holds values and reporters only; it decides nothing about training.
"""
