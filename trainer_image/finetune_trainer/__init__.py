"""What runs in the preflight pod and in the trainer pod: a FineTuneJob in, a verified adapter in the storage out.

Read ``attempt.py``, ``workers.py`` and ``recipe.py`` from the top down, then the room that you need. Nothing here
knows Kubernetes. Only ``recipe.py`` and what it imports need torch, so that a wrong job ends before torch is imported.
"""
