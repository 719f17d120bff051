"""Define ``spec.evaluation`` and ``spec.checkpoint``: what is measured and saved during the training."""

from pydantic import Field

from finetune_api.base import Model
from finetune_api.finetunejob.training import Positive
from finetune_api.forgetting import Forgetting
from finetune_api.gate import Gate
from finetune_api.limits import MAX_NUMBER


class Evaluation(Model):
    """The comparison of base and adapter on the held-out rows, which always runs at the end of the training."""

    every_steps: Positive | None = Field(
        None,
        description="Optimizer steps between two evaluations during the training. Unset: evaluate only at the end, "
        "unless everyEpoch is true.",
    )
    every_epoch: bool = Field(
        False, description="Evaluate at the end of each pass over the dataset, instead of everySteps."
    )
    max_rows: Positive = Field(200, description="Maximum number of held-out rows to use.")
    samples: int = Field(
        3,
        description="Number of held-out prompts that base and adapter complete, side by side in the report.",
        ge=0,
        le=20,
    )
    select_best: bool = Field(
        False,
        description="Publish the weights of the evaluated step with the lowest held-out loss, instead of the last "
        "ones. training.earlyStopping implies it.",
    )
    forgetting: Forgetting | None = Field(
        None,
        description="Also compare base and adapter on a general text, to measure forgetting. {}: use the text that "
        "comes with the trainer. Unset: no comparison.",
    )
    gate: Gate | None = Field(
        None,
        description="Limits that the adapter must meet to be published. Unset: it is published, with a warning if it "
        "is no better than its base.",
    )
    compare_with_full: bool = Field(
        False,
        description="After the adapter is finished, also train all weights of the base, and compare quality, memory, "
        "speed and size. Data, steps, effective batch and seed are the same; the learning rate is the default of "
        "method full. The model is measured, not published.",
    )

    @property
    def recurs(self) -> bool:
        """Return whether the held-out rows are also evaluated during the training."""
        return self.every_steps is not None or self.every_epoch


class Checkpoint(Model):
    """Checkpoints, which limit what an interruption costs. One is also saved when the pod is asked to stop."""

    every_steps: Positive | None = Field(
        None,
        description="Optimizer steps between two checkpoints. Unset: a tenth of all steps, at most 500, unless "
        "everyMinutes is set.",
    )
    every_minutes: float | None = Field(
        None,
        description="Minutes of training between two checkpoints, instead of everySteps.",
        gt=0,
        le=MAX_NUMBER,
    )
    keep: Positive = Field(
        2, description="Number of the newest complete checkpoints that stay in S3 while the job runs."
    )
