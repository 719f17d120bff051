"""The values that pass from gather to plan to apply of a FineTuneJob.

They are plain data, so that the plan is a pure function.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.finetunejob import FineTuneJob, FineTuneJobStatus
from finetune_api.messages import ProgressReport
from finetune_operator.event_record import EventRecord
from finetune_operator.kube.kinds import ATTEMPT_LABEL, ROLE_LABEL, Object
from finetune_operator.reconcile.status_builder import StatusBuilder
from finetune_operator.settings import Settings

JobStatusBuilder = StatusBuilder[FineTuneJobStatus]


@dataclass(frozen=True)
class Observed:
    """A FineTuneJob, its batch/v1 Jobs, and what is known of their pods."""

    resource: Object
    batch_jobs: Sequence[Object] = ()
    """The Jobs of preflight, attempts and clean-ups."""
    pods: Mapping[str, Sequence[Object]] = field(default_factory=dict)
    """Pods by the name of their Job, also of a deleted Job whose pod is still stopping."""
    progress_reports: Mapping[str, ProgressReport] = field(default_factory=dict)
    """The newest report by the name of the Job."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """What the newest Event about a Job or pod that does not start warned of, by uid."""

    def pods_of(self, batch_job: str) -> Sequence[Object]:
        """Return the pods of a Job, given by name."""
        return self.pods.get(batch_job, ())

    def batch_jobs_of(self, role: str) -> dict[int, Object]:
        """Return the Jobs of a role by the number of the attempt, the lowest first."""
        labels = {index: batch_job["metadata"]["labels"] for index, batch_job in enumerate(self.batch_jobs)}
        numbers = {int(own[ATTEMPT_LABEL]): index for index, own in labels.items() if own.get(ROLE_LABEL) == role}
        return {number: self.batch_jobs[numbers[number]] for number in sorted(numbers)}


@dataclass(frozen=True)
class PlanContext:
    """The input of every step of a plan."""

    observed: Observed
    job: FineTuneJob
    now: datetime
    settings: Settings


@dataclass(frozen=True)
class Plan:
    """The changes to make.

    Their order is ``end_pods``, ``delete``, ``create``, ``status`` (if it differs), ``events``.
    """

    status: Object
    delete: tuple[Object, ...] = ()
    create: Object | None = None
    events: tuple[EventRecord, ...] = ()
    requeue_after: float | None = None
    end_pods: tuple[Object, ...] = ()
    """Pods whose own container has ended while a sidecar keeps them running."""
    expires: bool = False
    """Write the events, then delete the FineTuneJob. Nothing else is done."""
    finalizers: list[str] | None = None
    """Write the events, then these finalizers. Nothing else is done: the next pass goes on from there."""
    rehearsal: Object | None = None
    """A Job that the API server only checks, before ``create``: a later one that it would refuse then ends the job."""
