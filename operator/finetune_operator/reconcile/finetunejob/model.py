"""Define the values that pass from gather to plan to apply of a FineTuneJob.

They are plain data, so that the plan is a pure function.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.finetunejob import FineTuneJob, FineTuneJobStatus
from finetune_api.messages import ProgressReport
from finetune_operator.event_record import EventRecord
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.preflight_reuse import JobWithSameChecks
from finetune_operator.reconcile.status_builder import StatusBuilder
from finetune_operator.resources.names import read_attempt
from finetune_operator.settings import Settings

JobStatusBuilder = StatusBuilder[FineTuneJobStatus]


@dataclass(frozen=True)
class Observed:
    """A FineTuneJob, its batch/v1 Jobs, and what is known of their pods."""

    resource: Object
    batch_jobs: Sequence[Object] = ()
    """The Jobs of preflight, attempts, merges and clean-ups."""
    pods: Mapping[str, Sequence[Object]] = field(default_factory=dict)
    """Pods by the name of their Job, also of a deleted Job whose pod is still stopping."""
    progress_reports: Mapping[str, ProgressReport] = field(default_factory=dict)
    """The newest report by the uid of the pod."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Text of the newest warning Event about each Job or pod that does not start, by uid."""
    jobs_with_same_checks: Sequence[JobWithSameChecks] = ()
    """Other jobs whose preflights make the same checks; gathered only for a FineTuneJob that has not begun."""

    def pods_of(self, batch_job: str) -> Sequence[Object]:
        """Return the pods of a Job, given by name."""
        return self.pods.get(batch_job, ())

    def batch_jobs_of(self, role: str) -> dict[int, Object]:
        """Return the Jobs of a role by the number of the attempt, the lowest first.

        Role and number are read from the name, because somebody may have edited the labels.
        """
        parent = self.resource["metadata"]["name"]
        numbers = [read_attempt(batch_job["metadata"]["name"], parent, role) for batch_job in self.batch_jobs]
        by_number = {number: job for number, job in zip(numbers, self.batch_jobs, strict=True) if number is not None}
        return dict(sorted(by_number.items()))


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
    """Write the events, then these finalizers. Nothing else is done: the next pass does the rest."""
    rehearsal: Object | None = None
    """A Job that the API server checks before ``create``, and does not create. If it is refused, the job fails."""
