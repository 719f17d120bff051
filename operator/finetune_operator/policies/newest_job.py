"""Choose which FineTuneJob's adapter a label selector follows. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_api.adapterdeployment import JobIdentity
from finetune_api.timestamps import parse_timestamp


@dataclass(frozen=True)
class FinishedJob:
    """A FineTuneJob with a verified adapter. ``identity`` has the time of completion."""

    identity: JobIdentity
    digest: str


def choose_newest(jobs: Sequence[FinishedJob], served: JobIdentity | None, bad: Collection[str]) -> FinishedJob | None:
    """Choose the job whose adapter is to be served; None: keep the served one, or wait.

    It is the newest by time of completion, then by name. Only a newer job replaces the served one, so that nothing goes
    back to an older adapter when a job is deleted or loses its label.

    Args:
        jobs: The jobs that the selector chooses.
        served: The job that is followed now; None: none yet.
        bad: Digests that were rolled back.
    """
    usable = [job for job in jobs if job.digest not in bad]
    newest = max(usable, key=lambda job: _order(job.identity), default=None)
    if newest is None or (served is not None and _order(newest.identity) <= _order(served)):
        return None
    return newest


def _order(job: JobIdentity) -> tuple[datetime, str]:
    if job.completed_at is None:
        raise ValueError(f"FineTuneJob {job.name!r} has not finished")
    return parse_timestamp(job.completed_at), job.name
