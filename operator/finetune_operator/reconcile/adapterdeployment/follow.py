"""Resolve the adapter of an AdapterDeployment that follows the newest FineTuneJob of a label selector. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from finetune_api.adapterdeployment import (
    AdapterDeploymentSpec,
    AdapterDeploymentStatus,
    AdapterVersion,
    JobIdentity,
    list_rolled_back,
)
from finetune_api.conditions import ConditionType
from finetune_api.core_v1.selectors import LabelSelector
from finetune_api.label_selector import format_selector, matches
from finetune_api.reasons import Reason
from finetune_operator.conditions import find_in
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.newest_job import FinishedJob, choose_newest
from finetune_operator.reconcile.adapterdeployment.model import Obstacle, Source
from finetune_operator.reconcile.adapterdeployment.version import (
    build_entry,
    build_job_source,
    describe_phase,
    find_artifact,
)
from finetune_operator.reconcile.status_builder import read_status

MAX_NAMED = 3
"""Maximum number of FineTuneJobs that a message names."""


def follow(
    resource: Object, spec: AdapterDeploymentSpec, selector: LabelSelector, finetune_jobs: Mapping[str, Object]
) -> Source | Obstacle:
    """Resolve what the pods are to serve: the newest job's adapter, or the one that is followed already."""
    text = format_selector(selector)
    status = read_status(AdapterDeploymentStatus, resource.get("status") or {})
    followed = _find_followed(status, text)
    jobs = {name: job for name, job in finetune_jobs.items() if matches(selector, job["metadata"].get("labels") or {})}
    artifacts = {name: find_artifact(spec, name, job.get("status") or {}) for name, job in jobs.items()}
    ready = {name: artifact for name, artifact in artifacts.items() if not isinstance(artifact, Obstacle)}
    finished = [FinishedJob(_identify(jobs[name], text), artifact.digest) for name, artifact in ready.items()]
    served = followed.fine_tune_job if followed is not None else None
    newest = choose_newest(finished, served, list_rolled_back(status.history))
    if newest is None and served is not None:
        newest = next((job for job in finished if job.identity.uid == served.uid), None)
    if newest is not None:
        name = newest.identity.name
        return replace(build_job_source(resource, spec, jobs[name], ready[name]), finetune_job=newest.identity)
    if followed is not None:
        version = (
            followed
            if spec.adapter.secret_ref is None
            else followed.model_copy(update={"secret_ref": spec.adapter.secret_ref})
        )
        return Source(build_entry(resource, spec, version), served)
    return _describe_wait(text, jobs)


def _find_followed(status: AdapterDeploymentStatus, selector: str) -> AdapterVersion | None:
    """Find the version that an earlier pass found by the same selector."""
    version = status.rollback.from_version if status.rollback is not None else status.desired
    if version is None or version.fine_tune_job is None or version.fine_tune_job.completed_at is None:
        return None
    return version if version.fine_tune_job.selector == selector else None


def _identify(finetune_job: Object, selector: str) -> JobIdentity:
    """Identify a finished job; its time of completion is that at which Ready became True."""
    meta, ready = finetune_job["metadata"], find_in(finetune_job, ConditionType.READY)
    return JobIdentity(
        name=meta["name"],
        uid=meta["uid"],
        completed_at=ready["lastTransitionTime"] if ready is not None else None,
        selector=selector,
    )


def _describe_wait(selector: str, jobs: Mapping[str, Object]) -> Obstacle:
    if not jobs:
        text = f"spec.adapter.selector: there is no FineTuneJob with {selector} in this namespace: waiting for one"
        return Obstacle(Reason.FINETUNE_JOB_NOT_FOUND, text, stalled=False)
    newest_first = sorted(jobs, key=lambda name: (jobs[name]["metadata"]["creationTimestamp"], name), reverse=True)
    named = [f"{name} ({_describe_job(jobs[name])})" for name in newest_first[:MAX_NAMED]]
    more = [f"and {len(jobs) - MAX_NAMED} more"] if len(jobs) > MAX_NAMED else []
    text = f"waiting for a FineTuneJob with {selector} to succeed; there are {', '.join([*named, *more])}"
    return Obstacle(Reason.ADAPTER_NOT_READY, text, stalled=False)


def _describe_job(finetune_job: Object) -> str:
    stalled, ready = find_in(finetune_job, ConditionType.STALLED), find_in(finetune_job, ConditionType.READY)
    if stalled is not None and stalled["status"] == "True":
        return f"failed: {stalled['reason']}"
    if ready is not None and ready["status"] == "True":
        return "rolled back"
    return describe_phase(finetune_job.get("status") or {})
