"""All that the report and the model card say of a run, as values."""

from dataclasses import dataclass, field
from typing import Any

from finetune_api.finetunejob import EvaluationStatus
from finetune_trainer.runtime.effective_settings import Setting
from finetune_trainer.session.run import ParameterCounts


@dataclass(frozen=True)
class Sample:
    """One held-out prompt, what its row goes on with, and what base and adapter make of it."""

    prompt: str
    expected: str
    base: str
    adapter: str


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram."""

    label: str
    count: int


@dataclass(frozen=True)
class Data:
    """The shape of the data: facts in words, and how long the training sequences are, in tokens."""

    facts: list[tuple[str, str]]
    lengths: list[Bar]


@dataclass(frozen=True)
class Attempt:
    """One attempt; ``resumed_from`` is the step of the checkpoint that it continued from, ``adjustments`` what was changed for it to fit into memory."""

    number: int
    started_at: str
    resumed_from: int | None
    device: str
    adjustments: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Failed:
    """One attempt that failed, as far as it came. The names are those of ``Report``, whose page it shares."""

    name: str
    created_at: str
    base_model: str
    base_revision: str | None
    dataset: str
    method: str
    objective: str
    reason: str
    message: str
    attempt: int
    step: int | None
    total_steps: int | None
    resumed_from: int | None
    checkpoint: str | None
    """Where the newest complete checkpoint is."""
    evaluation: EvaluationStatus | None
    """Of an adapter that was trained and measured, before something else went wrong."""
    trace: str
    """The traceback of an error that nobody expected."""
    history: list[dict[str, Any]]
    data: Data | None
    parameters: ParameterCounts | None
    settings: list[Setting]
    attempts: list[Attempt]
    versions: dict[str, str]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """One finished run."""

    name: str
    namespace: str
    created_at: str
    base_model: str
    base_revision: str | None
    base_on_hub: bool
    license: str | None
    dataset: str
    method: str
    objective: str
    peft_type: str
    """PEFT's name of what is published; FULL for a whole model, BOTTLENECK for layers that PEFT does not know."""
    rank: int | None
    adapter_uri: str
    servable_by: list[str]
    evaluation: EvaluationStatus
    samples: list[Sample]
    history: list[dict[str, Any]]
    data: Data
    settings: list[Setting]
    parameters: ParameterCounts
    attempts: list[Attempt]
    versions: dict[str, str]
    measured: dict[str, float]
    quantised: bool = False
    """Whether the base was held in fewer bits while the adapter was trained."""
    warnings: list[str] = field(default_factory=list)
