"""The program of the preflight pod and the trainer pod: from a FineTuneJob to a verified adapter in the storage.

Read ``attempt.py`` and ``recipe.py`` from the top down. Nothing here knows Kubernetes. Only ``recipe.py`` and what it
imports need torch; the preflight runs without it.
"""
