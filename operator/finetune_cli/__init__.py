"""Offer the command line ``finetune``, also as ``kubectl finetune``, for people and scripts.

It talks to the API server and to storage, and runs the trainer on a workstation; it must not know the operator's code.
"""
