"""The state of one attempt: settings, inputs, plan and results, and the reporters of its progress.

It holds values and reporters only; it decides nothing about training.
"""
