"""Check the adapter that the training starts from."""

from finetune_api.reasons import Reason
from finetune_trainer.methods import starting_adapter
from finetune_trainer.preflight.credentials import require_keys
from finetune_trainer.preflight.findings import CheckResult
from finetune_trainer.runtime.settings import Settings


def check_adapter(settings: Settings, result: CheckResult, patience_seconds: float) -> None:
    """Check that the starting adapter exists and is of this base and this method."""
    source = settings.job.spec.model.adapter
    if source is None:
        return
    require_keys(settings, source.secret_ref, f"{starting_adapter.FIELD}.secretRef", Reason.ADAPTER_ACCESS_DENIED)
    adapter = starting_adapter.find_adapter(settings, patience_seconds)
    result.adapter_base_revision = adapter.manifest.base_revision if adapter else None
    if adapter and source.digest is None:
        result.warnings.append(
            f"the training starts from {source.uri} with the digest {adapter.digest}: set it as "
            "spec.model.adapter.digest"
        )
