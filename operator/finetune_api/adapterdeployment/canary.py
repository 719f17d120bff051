"""Define the canary of a roll-out: steps at which a few pods, or a share of the requests, have the new version."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from finetune_api.adapterdeployment.analysis import Analysis
from finetune_api.base import Model, NameRef
from finetune_api.limits import MAX_COUNT

ONE_SIZE = "exactly one of pods, percent and trafficPercent must be set"
STEPS_GROW = "steps must grow: pods, percent and trafficPercent may not be lower than in an earlier step"
TRAFFIC_STEPS = "traffic and trafficPercent belong together: with traffic each step has trafficPercent, else none has"
MAX_STEPS = 10
"""Maximum number of steps.

Each entry of status.history has a sentence for each step, and an API object has a limited size.
"""


class InferenceModelRewrite(Model):
    """The InferenceModelRewrite by which the gateway gives each request to a version."""

    pool_ref: NameRef = Field(
        description="InferencePool of the gateway, in the same namespace, that chooses the pods of the target."
    )
    group: Literal["llm-d.ai", "inference.networking.x-k8s.io"] = Field(
        "llm-d.ai",
        description="API group of the InferenceModelRewrite that the gateway's endpoint picker follows. "
        "inference.networking.x-k8s.io is the older one.",
    )


class Traffic(Model):
    """Who divides the requests between two versions."""

    inference_model_rewrite: InferenceModelRewrite = Field(
        description="A gateway with the Gateway API Inference Extension (llm-d, for example). The operator owns one "
        "InferenceModelRewrite with the name of the AdapterDeployment. The administrator must allow it (chart value "
        "traffic.inferenceModelRewrites.enabled)."
    )


class CanaryStep(Model):
    """A step: how many pods, or which share of the requests, have the new version, and what ends the step."""

    pods: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(
        None, description="Number of pods that serve the new version. All of them, if there are fewer."
    )
    percent: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="Percentage of the target's replicas that serve the new version, rounded up."
    )
    traffic_percent: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="Percentage of the requests that the new version answers. Only with canary.traffic."
    )
    pause_seconds: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = Field(
        None,
        description="Seconds for which the step lasts before the analysis, or the next step. Unset, and no "
        "analysis: until a person lets it go on (finetune resume).",
    )
    analysis: Analysis | None = Field(
        None,
        description="What must hold before the next step begins. If it fails, the pods go back to the last good "
        "version. If it is inconclusive, the step waits for a person.",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "[has(self.pods), has(self.percent), has(self.trafficPercent)].filter(given, given).size() == 1",
            "message": ONE_SIZE,
        }
    ]

    @model_validator(mode="after")
    def _check_size(self) -> "CanaryStep":
        if sum(size is not None for size in (self.pods, self.percent, self.traffic_percent)) != 1:
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
    traffic: Traffic | None = Field(
        None,
        description="Let every pod hold both versions, and move requests in place of pods. Clients then reach the "
        "adapter through the gateway only. Unset: the steps count pods.",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "self.steps.filter(step, has(step.pods)).map(step, step.pods).isSorted() && "
            "self.steps.filter(step, has(step.percent)).map(step, step.percent).isSorted() && "
            "self.steps.filter(step, has(step.trafficPercent)).map(step, step.trafficPercent).isSorted()",
            "message": STEPS_GROW,
            "fieldPath": ".steps",
        },
        {
            "rule": "self.steps.all(step, has(step.trafficPercent) == has(self.traffic))",
            "message": TRAFFIC_STEPS,
            "fieldPath": ".traffic",
        },
    ]

    @model_validator(mode="after")
    def _check_growth(self) -> "Canary":
        for name in ("pods", "percent", "traffic_percent"):
            sizes = [getattr(step, name) for step in self.steps]
            known = [size for size in sizes if size is not None]
            if known != sorted(known):
                raise ValueError(STEPS_GROW)
        if any((step.traffic_percent is not None) != (self.traffic is not None) for step in self.steps):
            raise ValueError(TRAFFIC_STEPS)
        return self
