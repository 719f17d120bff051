"""Define the values of a run that reports and model card show."""

from dataclasses import dataclass, field
from typing import Any

from finetune_api.finetunejob import EvaluationStatus
from finetune_trainer.data.learned_parts import Part
from finetune_trainer.runtime.effective_settings import Setting
from finetune_trainer.session.run import ParameterCounts


@dataclass(frozen=True)
class Sample:
    """One held-out prompt, the text that follows it in its row, and the answers of base and adapter."""

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
class DataShape:
    """The shape of the data: named counts, and a histogram of the sequences' lengths in tokens."""

    facts: list[tuple[str, str]]
    lengths: list[Bar]


@dataclass(frozen=True)
class PhaseUsage:
    """GPU-seconds of one phase of the attempt, and their share in percent; plain seconds without a GPU."""

    phase: str
    seconds: float
    percent: float


@dataclass(frozen=True)
class Attempt:
    """One attempt.

    ``resumed_from`` is the step of the checkpoint from which it continued; ``adjustments`` are the settings that the
    out-of-memory ladder changed for it.
    """

    number: int
    started_at: str
    resumed_from: int | None
    device: str
    adjustments: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FailedReport:
    """The report of one failed attempt. It has the field names of ``Report``, because both share a template.

    ``checkpoint`` is the address of the newest complete checkpoint, ``evaluation`` that of an adapter that was
    verified before the failure, ``trace`` the traceback of an unexpected error.
    """

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
    evaluation: EvaluationStatus | None
    trace: str
    history: list[dict[str, Any]]
    data: DataShape | None
    parameters: ParameterCounts | None
    settings: list[Setting]
    attempts: list[Attempt]
    versions: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    usage: list[PhaseUsage] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """The report of one finished run.

    ``peft_type`` is PEFT's name of what is published; FULL for a whole model, BOTTLENECK for layers that PEFT does not
    have. ``quantised`` says whether the base was quantised during the training.
    """

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
    rank: int | None
    adapter_uri: str
    servable_by: list[str]
    evaluation: EvaluationStatus
    samples: list[Sample]
    history: list[dict[str, Any]]
    data: DataShape
    settings: list[Setting]
    parameters: ParameterCounts
    attempts: list[Attempt]
    versions: dict[str, str]
    verification: dict[str, float]
    quantised: bool = False
    warnings: list[str] = field(default_factory=list)
    usage: list[PhaseUsage] = field(default_factory=list)
    learned: list[dict[str, list[Part]]] = field(default_factory=list)
    """The first training sequences, by the parts that are learned."""
