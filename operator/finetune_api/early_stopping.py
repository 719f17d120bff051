"""Define ``spec.training.earlyStopping``: when a training ends before its last step."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import Model
from finetune_api.limits import MAX_COUNT, MAX_NUMBER


class EarlyStopping(Model):
    """The end of a training whose held-out loss stops falling, as in transformers.EarlyStoppingCallback."""

    patience: Annotated[int, Field(ge=1, le=MAX_COUNT)] = Field(
        description="Number of consecutive evaluations without improvement after which the training stops. "
        "evaluation.everySteps sets how often the adapter is evaluated."
    )
    min_delta: float = Field(
        0.0,
        description="Amount by which the held-out loss must fall below the lowest one so far to be an improvement.",
        ge=0,
        le=MAX_NUMBER,
    )
