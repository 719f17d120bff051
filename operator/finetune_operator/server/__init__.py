"""Serve HTTP: reports of pods, probes and metrics.

The server authenticates pods and keeps their reports; the reconcilers decide what follows from them.
"""
