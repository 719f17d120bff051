"""Run the analyses of canaries in tasks of their own, so that no pass waits for a service or a Job of a user.

Where an analysis asks, and what its answer means, is decided elsewhere (``policies``); the administrator allows it.
"""
