"""The HTTP server: reports of pods, probes and metrics.

It authenticates pods and keeps their reports; it does not decide what follows from them.
"""
