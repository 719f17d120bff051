"""Gather what a pass over a FineTuneJob needs."""

from finetune_api.timestamps import parse_timestamp
from finetune_operator.cache import Cache
from finetune_operator.context import Context
from finetune_operator.kube.kinds import (
    FINETUNE_JOB,
    JOB,
    JOB_LABEL,
    JOB_NAME_LABEL,
    POD,
    Key,
    Object,
    controller_uid,
    is_being_deleted,
)
from finetune_operator.policies.batch_job import is_suspended, may_still_run
from finetune_operator.policies.deletion import has_finalizer
from finetune_operator.policies.waiting import FIRST_LOOK_SECONDS
from finetune_operator.reconcile.finetunejob.model import Observed
from finetune_operator.resources.names import short


async def gather(key: Key, context: Context) -> Observed | None:
    """Gather the input of the plan; None if the FineTuneJob is gone, or about to go. Raises ``KubeError``."""
    _, namespace, name = key
    resource = context.cache.get(FINETUNE_JOB, namespace, name)
    if resource is None or (is_being_deleted(resource) and not has_finalizer(resource)):
        return None
    await _look_up_missing_job(resource, context)
    batch_jobs = list_batch_jobs(resource, context.cache)
    pods = group_pods(resource, batch_jobs, context.cache)
    progress_reports = {}
    for batch_job_name, group in pods.items():
        for pod in group:
            report = context.pod_reports.progress((namespace, pod["metadata"]["name"], pod["metadata"]["uid"]))
            if report is not None:
                progress_reports[batch_job_name] = report
    warnings = await _find_warnings(resource, batch_jobs, pods, context)
    return Observed(resource, batch_jobs, pods, progress_reports, warnings)


async def _find_warnings(
    resource: Object, batch_jobs: list[Object], pods: dict[str, list[Object]], context: Context
) -> dict[str, str]:
    """Find what events warn of, if the pod of the current run does not start soon."""
    status = resource.get("status", {})
    run = next((runs[-1] for runs in map(status.get, ("cleanUps", "attempts", "preflights")) if runs), None)
    if run is None or "finishedAt" in run or "startedAt" not in run:
        return {}
    since = (context.now() - parse_timestamp(run["startedAt"])).total_seconds()
    job = next((job for job in batch_jobs if job["metadata"]["name"] == run["jobName"]), None)
    if job is None or not may_still_run(job) or is_suspended(job) or since < FIRST_LOOK_SECONDS:
        return {}
    if any(pod["status"].get("phase") != "Pending" for pod in pods.get(run["jobName"], ())):
        return {}
    return await context.warnings.find(resource["metadata"]["namespace"])


def list_batch_jobs(resource: Object, cache: Cache) -> list[Object]:
    """List the Jobs of a FineTuneJob; of one that is deleted also those that a deletion with ``orphan`` gave up."""
    meta = resource["metadata"]
    owned = cache.list_owned(JOB, meta["uid"])
    if not is_being_deleted(resource):
        return owned
    labelled = cache.list_labelled(JOB, meta["namespace"], JOB_LABEL, short(meta["name"]))
    return owned + [job for job in labelled if controller_uid(job) is None and _is_younger(job, resource)]


def group_pods(resource: Object, batch_jobs: list[Object], cache: Cache) -> dict[str, list[Object]]:
    """Group the pods of a FineTuneJob by the name of their Job.

    A pod may outlive its Job, also without a controller: it may be orphaned while its Job is still being deleted. The
    next attempt must wait until it has stopped. A pod of an older Job of the same name is none of the Job's.
    """
    meta = resource["metadata"]
    names = {batch_job["metadata"]["uid"]: batch_job["metadata"]["name"] for batch_job in batch_jobs}
    lasting = {batch_job["metadata"]["name"] for batch_job in batch_jobs if not is_being_deleted(batch_job)}
    groups: dict[str, list[Object]] = {}
    for pod in cache.list_labelled(POD, meta["namespace"], JOB_LABEL, short(meta["name"])):
        owner = controller_uid(pod)
        name = names.get(owner or "")
        if name is None and _is_younger(pod, resource):
            name = pod["metadata"]["labels"].get(JOB_NAME_LABEL)
        if name is not None and (owner in names or name not in lasting):
            groups.setdefault(name, []).append(pod)
    return groups


def _is_younger(child: Object, resource: Object) -> bool:
    """Return whether the Job or pod cannot be of an older FineTuneJob of the same name."""
    return bool(child["metadata"]["creationTimestamp"] >= resource["metadata"]["creationTimestamp"])


async def _look_up_missing_job(resource: Object, context: Context) -> None:
    """Ask the API server for the Job of the current run, if the cache lacks it.

    The cache may be behind, and a Job that is gone ends its run.
    """
    meta, status = resource["metadata"], resource.get("status", {})
    for runs in map(status.get, ("preflights", "attempts", "cleanUps")):
        if not runs or "finishedAt" in runs[-1]:
            continue
        if context.cache.get(JOB, meta["namespace"], runs[-1]["jobName"]) is None:
            batch_job = await context.kube.get(JOB, meta["namespace"], runs[-1]["jobName"])
            if batch_job is not None and controller_uid(batch_job) == meta["uid"]:
                context.cache.put(JOB, batch_job)
