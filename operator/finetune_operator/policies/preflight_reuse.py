"""Find a preflight of another job that made the same checks, so that they need not be repeated. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.conditions import ConditionType
from finetune_api.messages import PreflightResult
from finetune_api.reasons import USER_ERRORS
from finetune_api.timestamps import parse_timestamp
from finetune_operator.conditions import find_in
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.outcome import SUCCEEDED, Ended, classify_pod

CONTAINER = "preflight"


@dataclass(frozen=True)
class JobWithSameChecks:
    """Another FineTuneJob of the namespace whose preflight makes the same checks."""

    resource: Object
    preflight_pods: Sequence[Object]


@dataclass(frozen=True)
class EarlierPreflight:
    """A preflight of another FineTuneJob that has passed."""

    job: str
    """Name of the FineTuneJob."""
    ended: datetime
    result: PreflightResult


def find_earlier_preflight(jobs: Sequence[JobWithSameChecks], now: datetime, seconds: float) -> EarlierPreflight | None:
    """Find the newest passed preflight that is at most ``seconds`` old; None: the job needs its own.

    An older result does not count, because data may have changed at their address. Neither does one that is older than
    the failure of a job with the same digest for a fault of its user, which this preflight did not see.
    """
    faults = [time for job in jobs if (time := _find_fault(job)) is not None]
    begin = now - timedelta(seconds=seconds)
    usable = [earlier for job in jobs for earlier in _list_passed(job) if earlier.ended > max([begin, *faults])]
    return max(usable, key=lambda earlier: earlier.ended, default=None)


def _find_fault(job: JobWithSameChecks) -> datetime | None:
    succeeded = find_in(job.resource, ConditionType.SUCCEEDED)
    if succeeded is None or succeeded["status"] != "False" or succeeded["reason"] not in USER_ERRORS:
        return None
    return parse_timestamp(succeeded["lastTransitionTime"])


def _list_passed(job: JobWithSameChecks) -> Iterator[EarlierPreflight]:
    """List the job's newest preflight, if it passed and its pod, which has the result, is still known."""
    runs = (job.resource.get("status") or {}).get("preflights") or [{}]
    if runs[-1].get("reason") != SUCCEEDED or "finishedAt" not in runs[-1]:
        return
    outcome = classify_pod(None, job.preflight_pods, CONTAINER) if job.preflight_pods else None
    if isinstance(outcome, Ended) and outcome.reason is None and isinstance(outcome.result, PreflightResult):
        yield EarlierPreflight(
            job.resource["metadata"]["name"], parse_timestamp(runs[-1]["finishedAt"]), outcome.result
        )
