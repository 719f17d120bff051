"""Check everything about a job that needs no GPU, no torch and no weights.

Each check is a file of its own; ``runner`` runs them in parallel. It knows neither the training nor how its
result becomes a status.
"""

from finetune_trainer.preflight.runner import check, main

__all__ = ["check", "main"]
