"""What an attempt has achieved so far: filled while it runs, and made into its result however it ends."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_api.dataset import Counts
from finetune_api.finetunejob import CheckpointStatus, EvaluationStatus, Progress, ReportStatus
from finetune_api.messages import ProgressReport, TrainerResult
from finetune_api.reasons import Reason

if TYPE_CHECKING:
    from finetune_trainer.models.memory import MemoryMeter


@dataclass(frozen=True)
class ParameterCounts:
    """What is trained: in all, and by the kind of module that carries it."""

    trainable: int
    total: int
    modules: list[tuple[str, int]]

    @property
    def percent(self) -> float:
        """The trained part of all parameters."""
        return 100 * self.trainable / max(self.total, 1)


@dataclass
class Run:
    """The state of one attempt that status and log speak of."""

    progress: Progress | None = None
    checkpoint: CheckpointStatus | None = None
    resumed_from_step: int | None = None
    evaluation: EvaluationStatus | None = None
    published_step: int | None = None
    """The step whose weights are published, if they were chosen."""
    page: ReportStatus | None = None
    """The report beside an adapter that is kept but not published."""
    day: str | None = None
    """The day that the chat template writes, if it writes one."""
    ended: TrainerResult | None = None
    """How the attempt failed, from then on: what is still done with it changes nothing of that."""
    begun: bool = False
    """Whether there is no finished adapter yet: from then on what lies at the output's place is this job's."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """All that was logged of single steps, over all attempts."""
    counts: Counts | None = None
    warnings: list[str] = field(default_factory=list)
    derived: dict[str, str] = field(default_factory=dict)
    """Settings that followed from others, the data and the machine."""
    parameters: ParameterCounts | None = None
    meter: "MemoryMeter | None" = None
    """Of the training's memory, from before the model was loaded."""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """Those before this one, as far as a checkpoint tells, and this one."""

    def result(self, reason: Reason, message: str) -> TrainerResult:
        """The result of an attempt that ended before its adapter was finished."""
        return TrainerResult(
            reason=reason,
            message=message,
            resumed_from_step=self.resumed_from_step,
            checkpoint=self.checkpoint,
            evaluation=self.evaluation,
            progress=self.progress,
            data=self.counts,
            report=self.page,
            warnings=self.warnings,
        )

    def report(self) -> ProgressReport | None:
        """What the operator is told now and then; None before the first step."""
        if self.progress is None:
            return None
        return ProgressReport(
            progress=self.progress, checkpoint=self.checkpoint, resumed_from_step=self.resumed_from_step
        )
