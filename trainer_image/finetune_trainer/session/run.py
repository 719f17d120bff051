"""Hold the state of an attempt, which is filled while it runs, and build its result."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_api.data_counts import Counts
from finetune_api.finetunejob import (
    Adjustment,
    CheckpointStatus,
    EvaluationStatus,
    Progress,
    ReportStatus,
    TrainingChoice,
)
from finetune_api.messages import ProgressReport, TrainerResult
from finetune_api.reasons import Reason
from finetune_artifacts.fence import FencedStorage

if TYPE_CHECKING:
    from finetune_trainer.models.memory import MemoryMeter


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters: the trained ones, all of them, and the trained ones by the name of their module."""

    trainable: int
    total: int
    modules: list[tuple[str, int]]

    @property
    def percent(self) -> float:
        """Return the share of trained parameters in percent."""
        return 100 * self.trainable / max(self.total, 1)


@dataclass
class Run:
    """The state of one attempt, which status, log and report show."""

    progress: Progress | None = None
    checkpoint: CheckpointStatus | None = None
    resumed_from_step: int | None = None
    evaluation: EvaluationStatus | None = None
    published_step: int | None = None
    """Step of the published weights, if the best weights are chosen."""
    report: ReportStatus | None = None
    """The HTML report of an attempt that publishes no adapter."""
    template_date: str | None = None
    """The date that the chat template writes, if it writes one."""
    stalled: str | None = None
    """Why the watchdog asked the training loop to stop."""
    failure: TrainerResult | None = None
    """The result of a failed attempt."""
    output: FencedStorage | None = None
    """The storage of the output, once this attempt has claimed it; None on a workstation."""
    owns_output: bool = False
    """Whether files at the output location are this job's: set once no finished adapter was found there."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """The entries that were logged for single steps, over all attempts."""
    counts: Counts | None = None
    warnings: list[str] = field(default_factory=list)
    derived_settings: dict[str, str] = field(default_factory=dict)
    """Values that follow from the settings, the data and the machine."""
    parameters: ParameterCounts | None = None
    memory_meter: "MemoryMeter | None" = None
    """Measures the training's memory; started before the model is loaded."""
    adjustments: tuple[Adjustment, ...] = ()
    """The settings that differ from the user's job, because the memory did not suffice."""
    choice: TrainingChoice | None = None
    """What was chosen for unset fields of the job."""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """This attempt and, as far as the checkpoint lists them, those before it."""

    def result(self, reason: Reason, message: str) -> TrainerResult:
        """Build the result of an attempt that ended without a published adapter."""
        return TrainerResult(
            reason=reason,
            message=message,
            resumed_from_step=self.resumed_from_step,
            checkpoint=self.checkpoint,
            evaluation=self.evaluation,
            progress=self.progress,
            data=self.counts,
            report=self.report,
            warnings=self.warnings,
            training_choice=self.choice,
            adjustments=list(self.adjustments) or None,
        )

    def progress_report(self) -> ProgressReport | None:
        """Build the report for the operator; None before the first step."""
        if self.progress is None:
            return None
        return ProgressReport(
            progress=self.progress,
            checkpoint=self.checkpoint,
            resumed_from_step=self.resumed_from_step,
            training_choice=self.choice,
            adjustments=list(self.adjustments) or None,
        )
