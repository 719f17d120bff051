"""Check everything about a job that needs no GPU, no torch and no weights.

Each check is a module, and ``runner`` runs all of them in parallel. The operator turns the result into a status.
"""

from finetune_trainer.preflight.runner import check, main

__all__ = ["check", "main"]
