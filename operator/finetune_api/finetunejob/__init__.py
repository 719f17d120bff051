"""Define ``FineTuneJob``: it trains an adapter from a model, a dataset and a method, and publishes it to S3."""

from finetune_api.finetunejob.evaluation import Checkpoint, Evaluation
from finetune_api.finetunejob.failure import FailurePolicy, OutOfMemory, Retries
from finetune_api.finetunejob.job import FineTuneJob, ObjectMeta
from finetune_api.finetunejob.model import ModelCache, ModelSource, StartingAdapter
from finetune_api.finetunejob.output import HubOutput, Output, S3Output
from finetune_api.finetunejob.pod import ContainerResources, PodTemplate, Resources
from finetune_api.finetunejob.spec import FineTuneJobSpec
from finetune_api.finetunejob.status import (
    AdapterStatus,
    Adjustment,
    Attempt,
    CachedModel,
    CheckpointStatus,
    Estimate,
    EvaluationStatus,
    FineTuneJobStatus,
    MergedModelStatus,
    Phase,
    Progress,
    ReportStatus,
    TrainingChoice,
    Usage,
)
from finetune_api.finetunejob.training import Objective, Preference, Training

__all__ = [
    "AdapterStatus",
    "Adjustment",
    "Attempt",
    "CachedModel",
    "Checkpoint",
    "CheckpointStatus",
    "ContainerResources",
    "Estimate",
    "Evaluation",
    "EvaluationStatus",
    "FailurePolicy",
    "FineTuneJob",
    "FineTuneJobSpec",
    "FineTuneJobStatus",
    "HubOutput",
    "MergedModelStatus",
    "ModelCache",
    "ModelSource",
    "ObjectMeta",
    "Objective",
    "OutOfMemory",
    "Output",
    "Phase",
    "PodTemplate",
    "Preference",
    "Progress",
    "ReportStatus",
    "Resources",
    "Retries",
    "S3Output",
    "StartingAdapter",
    "Training",
    "TrainingChoice",
    "Usage",
]
