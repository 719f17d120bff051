"""Check that a Secret has the keys that S3 needs."""

from finetune_api.base import SecretRef
from finetune_api.reasons import Reason
from finetune_artifacts.s3_connection import find_missing_keys
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings


def require_keys(settings: Settings, reference: SecretRef | None, path: str, reason: Reason) -> None:
    """Raise Failure if the Secret of a field lacks a key that S3 needs.

    Args:
        settings: The attempt's settings.
        reference: The Secret that the user named, if any.
        path: Path of the field that names it.
        reason: Reason of the failure.
    """
    secret = settings.secret(reference)
    if secret is None or not (missing := find_missing_keys(secret)):
        return
    keys = sorted(entry.name for entry in secret.iterdir() if not entry.name.startswith(".")) if secret.is_dir() else []
    details = (
        f"its keys are: {', '.join(keys)}" if keys else "there is no such Secret in the job's namespace, or it is empty"
    )
    raise Failure(reason, f"Secret {secret.name!r} must have {' and '.join(missing)}: {details}", path)
