"""When a training ends before its last step, because it has ceased to get better."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import Model


class EarlyStopping(Model):
    """The end of a training whose held-out loss falls no more; as in transformers' EarlyStoppingCallback."""

    patience: Annotated[int, Field(ge=1)] = Field(
        description="Stop after so many evaluations (evaluation.everySteps) in a row without improvement."
    )
    min_delta: float = Field(
        0.0, description="By how much the held-out loss must fall below the lowest one to be an improvement.", ge=0
    )
