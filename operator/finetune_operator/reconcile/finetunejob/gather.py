"""Gather what a pass over a FineTuneJob needs."""

from finetune_operator.context import Context
from finetune_operator.kube.kinds import (
    FINETUNE_JOB,
    JOB,
    JOB_LABEL,
    POD,
    Key,
    Object,
    controller_uid,
)
from finetune_operator.reconcile.finetunejob.model import Observed
from finetune_operator.resources.names import short

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
"""On every pod of a Job, by the Job controller."""


async def gather(key: Key, context: Context) -> Observed | None:
    """Gather the input of the plan; None if the FineTuneJob is deleted. Raises ``KubeError``."""
    _, namespace, name = key
    resource = context.cache.get(FINETUNE_JOB, namespace, name)
    if resource is None or resource["metadata"].get("deletionTimestamp"):
        return None
    await _look_up_missing_job(resource, context)
    batch_jobs = context.cache.list_owned(JOB, resource["metadata"]["uid"])
    names = {batch_job["metadata"]["uid"]: batch_job["metadata"]["name"] for batch_job in batch_jobs}
    pods = _group_pods(resource, names, context)
    progress_reports = {}
    for batch_job_name, group in pods.items():
        for pod in group:
            report = context.pod_reports.progress((namespace, pod["metadata"]["name"], pod["metadata"]["uid"]))
            if report is not None:
                progress_reports[batch_job_name] = report
    return Observed(resource, batch_jobs, pods, progress_reports)


def _group_pods(resource: Object, names: dict[str, str], context: Context) -> dict[str, list[Object]]:
    """Group the pods of a FineTuneJob by the name of their Job; ``names`` has the names by uid.

    A pod may outlive its Job. It then stops, and the next attempt must wait until it has.
    """
    meta = resource["metadata"]
    groups: dict[str, list[Object]] = {}
    for pod in context.cache.list_labelled(POD, meta["namespace"], JOB_LABEL, short(meta["name"])):
        owner = controller_uid(pod)
        name = names.get(owner or "")
        if name is None and owner is not None and _is_younger(pod, resource):
            name = pod["metadata"]["labels"].get(JOB_NAME_LABEL)
        if name is not None and (owner in names or name not in names.values()):
            groups.setdefault(name, []).append(pod)
    return groups


def _is_younger(pod: Object, resource: Object) -> bool:
    """Return whether the pod cannot be of an older FineTuneJob of the same name."""
    return bool(pod["metadata"]["creationTimestamp"] >= resource["metadata"]["creationTimestamp"])


async def _look_up_missing_job(resource: Object, context: Context) -> None:
    """Ask the API server for the Job of the running attempt, if the cache lacks it.

    The cache may be behind, and a Job that is gone ends its attempt.
    """
    attempts = resource.get("status", {}).get("attempts", [])
    if not attempts or "finishedAt" in attempts[-1]:
        return
    meta, name = resource["metadata"], attempts[-1]["jobName"]
    if context.cache.get(JOB, meta["namespace"], name) is None:
        batch_job = await context.kube.get(JOB, meta["namespace"], name)
        if batch_job is not None and controller_uid(batch_job) == meta["uid"]:
            context.cache.put(JOB, batch_job)
