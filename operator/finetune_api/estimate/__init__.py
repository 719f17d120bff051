"""Estimate parameters, memory, steps and time of a job from its spec and the model's config.json.

Everything is a closed form: no torch, no weights.
"""
