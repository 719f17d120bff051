"""Turn a FineTuneJob into a verified adapter: the program of the preflight and trainer pods.

Read ``attempt.py`` and ``recipe.py`` from the top down. Nothing here knows Kubernetes. Only ``recipe.py`` and what it
imports need torch; the preflight runs without it.
"""
