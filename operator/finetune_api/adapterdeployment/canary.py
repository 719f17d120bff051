"""Define the canary of a roll-out: steps at which a few pods serve the new version before the others."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from finetune_api.adapterdeployment.analysis import Analysis
from finetune_api.base import Model
from finetune_api.limits import MAX_COUNT

ONE_SIZE = "exactly one of pods and percent must be set"
STEPS_GROW = "steps must grow: pods and percent may not be lower than in an earlier step"
MAX_STEPS = 10
"""Maximum number of steps.

Each entry of status.history has a sentence for each step, and an API object has a limited size.
"""


class CanaryStep(Model):
    """A step: how many pods serve the new version, and what must happen before the next step."""

    pods: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(
        None, description="Number of pods that serve the new version. All of them, if there are fewer."
    )
    percent: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="Percentage of the target's replicas that serve the new version, rounded up."
    )
    pause_seconds: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = Field(
        None,
        description="Seconds for which these pods serve it before the analysis, or the next step. Unset, and no "
        "analysis: until a person lets it go on (finetune resume).",
    )
    analysis: Analysis | None = Field(
        None,
        description="What must hold before the next step begins. If it fails, the pods go back to the last good "
        "version. If it is inconclusive, the step waits for a person.",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [{"rule": "has(self.pods) != has(self.percent)", "message": ONE_SIZE}]

    @model_validator(mode="after")
    def _check_size(self) -> "CanaryStep":
        if (self.pods is None) == (self.percent is None):
            raise ValueError(ONE_SIZE)
        return self


class Canary(Model):
    """Steps that a new version passes before every pod takes it."""

    steps: list[CanaryStep] = Field(
        description="The steps, in this order. After the last one all other pods take the version. The first version "
        "and a rollback have no canary.",
        min_length=1,
        max_length=MAX_STEPS,
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "self.steps.filter(step, has(step.pods)).map(step, step.pods).isSorted() && "
            "self.steps.filter(step, has(step.percent)).map(step, step.percent).isSorted()",
            "message": STEPS_GROW,
            "fieldPath": ".steps",
        }
    ]

    @model_validator(mode="after")
    def _check_growth(self) -> "Canary":
        for sizes in ([step.pods for step in self.steps], [step.percent for step in self.steps]):
            known = [size for size in sizes if size is not None]
            if known != sorted(known):
                raise ValueError(STEPS_GROW)
        return self
