"""Define the spec of a FineTuneJob: what the user asks for."""

from pydantic import Field, model_validator

from finetune_api import combinations
from finetune_api.base import Model
from finetune_api.dataset import DatasetSource
from finetune_api.finetunejob.editable import immutability_rules
from finetune_api.finetunejob.evaluation import Checkpoint, Evaluation
from finetune_api.finetunejob.failure import FailurePolicy
from finetune_api.finetunejob.model import ModelSource
from finetune_api.finetunejob.output import Output
from finetune_api.finetunejob.pod import PodTemplate, Resources
from finetune_api.finetunejob.training import Objective, Preference, Training
from finetune_api.limits import MAX_COUNT
from finetune_api.methods import Lora, Method
from finetune_api.tracking import Tracking


class FineTuneJobSpec(Model):
    """What to train, on which data, how, and where the adapter is stored. Fields that decide it are immutable."""

    model: ModelSource = Field(description="Base model.")
    dataset: DatasetSource = Field(description="Rows to train on.")
    objective: Objective = Field(
        "sft",
        description="Training objective, by TRL's name. sft: supervised fine-tuning. dpo and orpo: from pairs of a "
        "better and a worse answer. kto: from answers with a label. reward: a model that scores answers, from such "
        "pairs.",
    )
    preference: Preference | None = Field(None, description="Settings of the objectives dpo, kto and orpo.")
    method: Method = Field(
        default_factory=lambda: Method(lora=Lora()),
        description="Fine-tuning method: exactly one of its fields. Default: lora.",
        json_schema_extra={"default": {"lora": {}}},
    )
    training: Training = Field(default_factory=Training, description="Hyperparameters of the training.")
    evaluation: Evaluation = Field(
        default_factory=Evaluation, description="Comparison of base and adapter on held-out rows."
    )
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint, description="Checkpoints, which limit what an interruption costs."
    )
    output: Output = Field(description="Where checkpoints and the adapter are stored.")
    tracking: Tracking = Field(
        default_factory=Tracking,
        description="Experiment trackers that receive the metrics, in addition to the files that every run writes.",
    )
    resources: Resources = Field(
        default_factory=Resources, description="Resources that the trainer pod requests from the cluster."
    )
    pod_template: PodTemplate = Field(default_factory=PodTemplate, description="Where and how the trainer pod runs.")
    failure_policy: FailurePolicy = Field(
        default_factory=FailurePolicy, description="What happens after a failed attempt."
    )
    suspend: bool = Field(
        False,
        description="Pause the job: its pod saves a checkpoint and ends, which frees its GPU. When false again, "
        "the next attempt continues from there. This uses no retry.",
    )
    active_deadline_seconds: int | None = Field(
        None,
        description="Seconds that the trainers of all attempts may run together. Time in which they wait, or the job "
        "is suspended, does not count. Then the pod saves a checkpoint, and the job fails with DeadlineExceeded. "
        "Unset: no limit.",
        ge=1,
        le=MAX_COUNT,
    )
    ttl_seconds_after_finished: int | None = Field(
        None,
        description="Seconds after which a finished job, successful or failed, is deleted with its Jobs and pods. An "
        "Event names the adapter that it made. What happens in S3 is decided by output.deletionPolicy. Unset: never.",
        ge=0,
        le=MAX_COUNT,
    )
    pending_deadline_seconds: int | None = Field(
        None,
        description="Seconds that a preflight or trainer pod may wait until it runs: for admission, a queue, a node or "
        "its image. Then the job fails with the reason for which the pod waited. Unset: no limit.",
        ge=1,
        le=MAX_COUNT,
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> "FineTuneJobSpec":
        combinations.check(self)
        return self


FineTuneJobSpec.cel_rules = [*immutability_rules(FineTuneJobSpec), *combinations.CEL_RULES]
