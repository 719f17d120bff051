"""Define ``spec.evaluation.gate``: the held-out limits that an adapter must meet to be published."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from finetune_api.base import Model
from finetune_api.limits import MAX_NUMBER

NO_LIMIT = "a gate needs a limit: set max, minImprovementPercent or both"


class Gate(Model):
    """Limits for the finished adapter on the held-out rows. An adapter that misses one is stored, but not published."""

    metric: Literal["loss", "perplexity"] = Field(
        "loss",
        description="Metric with limits. loss: the objective's own loss. perplexity: exp of the loss, for objective "
        "sft.",
    )
    max: float | None = Field(None, description="Highest value of the metric that passes.", gt=0, le=MAX_NUMBER)
    min_improvement_percent: float | None = Field(
        None,
        description="Minimum improvement: the percentage by which the metric must be lower than the base's.",
        ge=0,
        lt=100,
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {"rule": "has(self.max) || has(self.minImprovementPercent)", "message": NO_LIMIT}
    ]

    @model_validator(mode="after")
    def _check_limit(self) -> "Gate":
        if self.max is None and self.min_improvement_percent is None:
            raise ValueError(NO_LIMIT)
        return self
