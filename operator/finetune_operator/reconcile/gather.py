"""What a pass over a FineTuneJob reads: the local cache, and the API server only where the cache lacks what status speaks of."""

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
from finetune_operator.reconcile.model import Observed
from finetune_operator.resources.names import short

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
"""On every pod of a Job, by the Job controller."""


async def gather(key: Key, context: Context) -> Observed | None:
    """Everything that the plan needs; None if the FineTuneJob is gone or on its way out. Raises ``KubeError``."""
    _, namespace, name = key
    item = context.store.get(FINETUNE_JOB, namespace, name)
    if item is None or item["metadata"].get("deletionTimestamp"):
        return None
    uid = item["metadata"]["uid"]
    await _fetch_missing(item, context)
    jobs = context.store.owned(JOB, uid)
    pods = _pods(item, {job["metadata"]["uid"]: job["metadata"]["name"] for job in jobs}, context)
    progress = {}
    for name_of_job, children in pods.items():
        for pod in children:
            report = context.reports.progress((namespace, pod["metadata"]["name"], pod["metadata"]["uid"]))
            if report is not None:
                progress[name_of_job] = report
    return Observed(item, jobs, pods, progress)


def _pods(item: Object, jobs: dict[str, str], context: Context) -> dict[str, list[Object]]:
    """The FineTuneJob's pods by the name of their Job. A pod may outlive its Job: it then stops, and until it has, nothing may take its place."""
    meta = item["metadata"]
    found: dict[str, list[Object]] = {}
    for pod in context.store.labelled(POD, meta["namespace"], JOB_LABEL, short(meta["name"])):
        owner = controller_uid(pod)
        name = jobs.get(owner or "")
        if name is None and owner is not None and _is_younger(pod, item):
            name = pod["metadata"]["labels"].get(JOB_NAME_LABEL)
        if name is not None and (owner in jobs or name not in jobs.values()):
            found.setdefault(name, []).append(pod)
    return found


def _is_younger(pod: Object, item: Object) -> bool:
    """Not a pod of an older FineTuneJob of the same name."""
    return bool(pod["metadata"]["creationTimestamp"] >= item["metadata"]["creationTimestamp"])


async def _fetch_missing(item: Object, context: Context) -> None:
    """Before an attempt counts as lost because its Job is gone, ask the API server: the cache may be behind."""
    attempts = item.get("status", {}).get("attempts", [])
    if not attempts or "finishedAt" in attempts[-1]:
        return
    meta, name = item["metadata"], attempts[-1]["jobName"]
    if context.store.get(JOB, meta["namespace"], name) is None:
        job = await context.kube.get(JOB, meta["namespace"], name)
        if job is not None and controller_uid(job) == meta["uid"]:
            context.store.put(JOB, job)
