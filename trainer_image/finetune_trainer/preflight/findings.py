"""The findings of one check of the preflight."""

import dataclasses
from dataclasses import dataclass

from finetune_api.finetunejob import CachedModel, Estimate
from finetune_api.messages import Problem
from finetune_api.reasons import Reason
from finetune_trainer.data.columns import Layout
from finetune_trainer.data.values import Row
from finetune_trainer.models.base_files import ModelMetadata


@dataclass
class CheckResult:
    """The findings of one check.

    ``chats`` says whether the dataset has chat messages, ``facts`` are the model's, ``made_for`` is the commit of the
    base for which the starting adapter was made.
    """

    problems: list[Problem] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    chats: bool = False
    facts: ModelMetadata | None = None
    made_for: str | None = None
    estimate: Estimate | None = None
    cached_model: CachedModel | None = None
    layout: Layout | None = None
    sample: list[tuple[str, Row]] = dataclasses.field(default_factory=list)
    """The first good rows of the training data, and where they are."""

    def add(self, reason: Reason, field: str, message: str) -> None:
        """Add one problem with the field of the spec that causes it."""
        self.problems.append(Problem(reason=reason, field=field, message=message))
