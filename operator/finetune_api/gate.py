"""What the held-out rows must show of an adapter before it is published."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from finetune_api.base import Model

NO_LIMIT = "a gate needs a limit: set max, minImprovementPercent or both"


class Gate(Model):
    """Limits that the finished adapter must keep on the held-out rows. One that does not is kept, but not published."""

    metric: Literal["loss", "perplexity"] = Field(
        "loss",
        description="What is judged: loss, the objective's own; or perplexity, for objective sft (exp of its loss).",
    )
    max: float | None = Field(None, description="Highest value of the metric that passes.", gt=0)
    min_improvement_percent: float | None = Field(
        None,
        description="By how much the metric must at least be lower than the base's, in percent of the base's.",
        ge=0,
        lt=100,
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {"rule": "has(self.max) || has(self.minImprovementPercent)", "message": NO_LIMIT}
    ]

    @model_validator(mode="after")
    def _limited(self) -> "Gate":
        if self.max is None and self.min_improvement_percent is None:
            raise ValueError(NO_LIMIT)
        return self
