"""Offer the command line ``finetune``, also as ``kubectl finetune``, for people and scripts.

It talks to the API server and to storage, and runs the trainer on a workstation. Of the operator's code it uses only
the pure functions that build the agent's part of a pod template (``finetune_cli.agent``).
"""
