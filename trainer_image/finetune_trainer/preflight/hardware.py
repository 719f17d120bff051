"""Check settings that the job's hardware cannot run."""

from finetune_api.reasons import Reason
from finetune_trainer.preflight.findings import CheckResult
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session import tracking


def check_settings(settings: Settings, result: CheckResult, patience_seconds: float) -> None:
    """Check the tracking services, and the settings that need a GPU if the job has none."""
    spec = settings.job.spec
    tracking.check(settings, installed=settings.workstation)
    if spec.resources.gpus_per_node:
        return
    if spec.training.precision == "fp16":
        result.add(
            Reason.SPEC_INVALID,
            "spec.training.precision",
            "fp16 needs a GPU, and resources.gpusPerNode is 0: choose auto, bf16 or fp32",
        )
    if spec.training.optimizer == "paged_adamw_8bit":
        result.add(
            Reason.SPEC_INVALID,
            "spec.training.optimizer",
            "paged_adamw_8bit needs a GPU, and resources.gpusPerNode is 0: choose auto",
        )
