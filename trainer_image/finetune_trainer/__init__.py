"""What runs in the preflight pod and in the trainer pod: a FineTuneJob in, a verified adapter in S3 out.

Read ``train.py`` and ``recipe.py`` from the top down. Nothing here knows Kubernetes. Only ``recipe.py`` and what it imports need torch;
the preflight runs without it.
"""
