"""What a pass over a FineTuneJob reads: the local cache, and the API server only where the cache lacks what status speaks of."""

from finetune_operator.context import Context
from finetune_operator.kube.kinds import FINETUNE_JOB, JOB, POD, Key, Object, controller_uid
from finetune_operator.reconcile.model import Observed


async def gather(key: Key, context: Context) -> Observed | None:
    """Everything that the plan needs; None if the FineTuneJob is gone or on its way out. Raises ``KubeError``."""
    _, namespace, name = key
    item = context.store.get(FINETUNE_JOB, namespace, name)
    if item is None or item["metadata"].get("deletionTimestamp"):
        return None
    uid = item["metadata"]["uid"]
    await _fetch_missing(item, context)
    jobs = context.store.owned(JOB, uid)
    pods = {job["metadata"]["uid"]: context.store.owned(POD, job["metadata"]["uid"]) for job in jobs}
    progress = {}
    for job_uid, children in pods.items():
        for pod in children:
            report = context.reports.progress((namespace, pod["metadata"]["name"], pod["metadata"]["uid"]))
            if report is not None:
                progress[job_uid] = report
    return Observed(item, jobs, pods, progress)


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
