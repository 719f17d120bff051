"""Turn a FineTuneJob into a verified adapter: the program of the preflight and trainer pods.

Read ``attempt.py``, ``workers.py`` and ``recipe.py`` from the top down, then the package that you need. Nothing here
knows Kubernetes. Only ``recipe.py`` and what it imports need torch, so that a wrong job ends before torch is imported.
"""
