"""Collect the findings of one check of the preflight."""

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

    Attributes:
        problems: Why the job cannot be trained.
        warnings: Texts for the user.
        chats: Whether the dataset has chat messages.
        metadata: The model's metadata.
        adapter_base_revision: Commit of the base on which the starting adapter was trained.
        estimate: The estimate of parameters and memory.
        cached_model: Where the model is in the cache.
        layout: What the rows of the dataset are.
        sample: The first good rows of the training data, each with its location.
    """

    problems: list[Problem] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    chats: bool = False
    metadata: ModelMetadata | None = None
    adapter_base_revision: str | None = None
    estimate: Estimate | None = None
    cached_model: CachedModel | None = None
    layout: Layout | None = None
    sample: list[tuple[str, Row]] = dataclasses.field(default_factory=list)

    def add(self, reason: Reason, field: str, message: str) -> None:
        """Add one problem with the field of the spec that causes it."""
        self.problems.append(Problem(reason=reason, field=field, message=message))
