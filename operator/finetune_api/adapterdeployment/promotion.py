"""Define and read a person's request to go on with a canary.

It is an annotation, because the spec belongs to Git and the status to the operator.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from finetune_api import GROUP
from finetune_api.base import Lenient

PROMOTION_ANNOTATION = f"{GROUP}/promotion"
"""On an AdapterDeployment: a ``PromotionRequest`` as JSON. `finetune resume` and `finetune promote` write it."""


class PromotionRequest(Lenient):
    """Let one canary go on: past one step, or past all of them; or make the analysis of a step again."""

    started_at: str = Field(description="status.canary.startedAt of the canary. Any other canary ignores the request.")
    step: int | None = Field(None, description="Number of the step that is over, from 1. Unset: all of them.", ge=1)
    again: str | None = Field(
        None, description="status.canary.analysis.at of the result in place of which another analysis is made."
    )

    def covers(self, started_at: str, step: int) -> bool:
        """Return whether the request lets this canary go past this step."""
        return self.again is None and self.started_at == started_at and self.step in (None, step)


def read_promotion(metadata: Mapping[str, Any]) -> PromotionRequest | None:
    """Read the request from an object's metadata; None without the annotation.

    Raises:
        ValueError: The annotation is no valid request; the message says what is wrong.
    """
    text = (metadata.get("annotations") or {}).get(PROMOTION_ANNOTATION)
    if text is None:
        return None
    try:
        return PromotionRequest.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{where}: {problem['msg']}" if where else str(problem["msg"])) from error
