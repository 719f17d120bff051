"""What a pass over a FineTuneJob sees, and what it decides: plain values, so that the plan is a pure function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.messages import ProgressReport
from finetune_operator.kube.kinds import Object
from finetune_operator.notes import Note


@dataclass(frozen=True)
class Observed:
    """The FineTuneJob, its Jobs, and what is known of their pods."""

    item: Object
    jobs: Sequence[Object] = ()
    """Its batch/v1 Jobs, of preflight and attempts."""
    pods: Mapping[str, Sequence[Object]] | None = None
    """Pods by the name of their Job, also where the Job is gone and the pod is still stopping."""
    progress: Mapping[str, ProgressReport] | None = None
    """The newest report by the name of the Job."""

    def pods_of(self, job_name: str) -> Sequence[Object]:
        """The pods of one of the Jobs."""
        return (self.pods or {}).get(job_name, ())


@dataclass(frozen=True)
class Plan:
    """What is to be done, in this order: ``delete``, ``create``, ``status`` (if it differs), ``notes``."""

    status: dict[str, Any]
    delete: tuple[Object, ...] = ()
    create: Object | None = None
    notes: tuple[Note, ...] = ()
    requeue_after: float | None = None
