"""Gather what a pass over a FineTuneJob needs."""

import itertools

from finetune_api.timestamps import parse_timestamp
from finetune_operator.cache import Cache
from finetune_operator.context import Context
from finetune_operator.kube.kinds import (
    DIGEST_LABEL,
    FINETUNE_JOB,
    JOB,
    JOB_LABEL,
    JOB_NAME_LABEL,
    POD,
    ROLE_LABEL,
    Key,
    Object,
    controller_uid,
    finetune_job_of,
    is_being_deleted,
)
from finetune_operator.policies.batch_job import is_suspended, may_still_run
from finetune_operator.policies.deletion import has_finalizer
from finetune_operator.policies.preflight_reuse import JobWithSameChecks
from finetune_operator.policies.waiting import FIRST_LOOK_SECONDS
from finetune_operator.reconcile.finetunejob.model import Observed
from finetune_operator.resources.names import PREFLIGHT, short
from finetune_operator.resources.preflight_digest import compute_preflight_digest
from finetune_operator.settings import Settings

RUNS = ("preflights", "attempts", "merges", "cleanUps")
"""Fields of the status with the runs of each role, in the order in which a FineTuneJob has them."""
NEWEST_PREFLIGHTS = 8
"""How many preflights with the same digest are looked at: of many jobs that are created at once, each looks once."""


async def gather(key: Key, context: Context) -> Observed | None:
    """Gather the input of the plan; None if the FineTuneJob is deleted or about to be. Raises ``KubeError``."""
    _, namespace, name = key
    resource = context.cache.get(FINETUNE_JOB, namespace, name)
    if resource is None or (is_being_deleted(resource) and not has_finalizer(resource)):
        return None
    await _look_up_missing_children(resource, context)
    batch_jobs = list_batch_jobs(resource, context.cache)
    await _look_up_missing_pods(resource, batch_jobs, context)
    pods = group_pods(resource, batch_jobs, context.cache)
    progress_reports = {}
    for pod in itertools.chain.from_iterable(pods.values()):
        uid = pod["metadata"]["uid"]
        report = context.pod_reports.progress((namespace, pod["metadata"]["name"], uid))
        if report is not None:
            progress_reports[uid] = report
    warnings = await _find_warnings(resource, batch_jobs, pods, context)
    has_begun = batch_jobs or {"preflights", "attempts"} & resource.get("status", {}).keys()
    same_checks = () if has_begun else find_jobs_with_same_checks(resource, context.cache, context.settings)
    return Observed(resource, batch_jobs, pods, progress_reports, warnings, same_checks)


async def _find_warnings(
    resource: Object, batch_jobs: list[Object], pods: dict[str, list[Object]], context: Context
) -> dict[str, str]:
    """Find the texts of warning Events by uid; none are read unless the current run waits for its pod."""
    status = resource.get("status", {})
    run = next((runs[-1] for runs in map(status.get, reversed(RUNS)) if runs), None)
    if run is None or "finishedAt" in run or "startedAt" not in run:
        return {}
    since = (context.now() - parse_timestamp(run["startedAt"])).total_seconds()
    job = next((job for job in batch_jobs if job["metadata"]["name"] == run["jobName"]), None)
    if job is None or not may_still_run(job) or is_suspended(job) or since < FIRST_LOOK_SECONDS:
        return {}
    # another pod may follow one that has failed
    if any(pod["status"].get("phase") not in ("Pending", "Failed") for pod in pods.get(run["jobName"], ())):
        return {}
    return await context.warnings.find(resource["metadata"]["namespace"])


def find_jobs_with_same_checks(resource: Object, cache: Cache, settings: Settings) -> tuple[JobWithSameChecks, ...]:
    """Find other FineTuneJobs of the namespace whose preflights make the same checks: the newest, and failed ones."""
    digest = compute_preflight_digest(resource["spec"], settings)
    if digest is None or not settings.preflight_reuse_seconds:
        return ()
    namespace = resource["metadata"]["namespace"]
    found = [JobWithSameChecks(failed, ()) for failed in cache.list_failed(namespace, DIGEST_LABEL, digest)]
    preflights = {ROLE_LABEL: PREFLIGHT, DIGEST_LABEL: digest}
    for job in cache.list_newest(JOB, namespace, preflights, NEWEST_PREFLIGHTS):
        other = cache.get(FINETUNE_JOB, namespace, finetune_job_of(job) or "")
        if other is not None and other["metadata"]["uid"] == controller_uid(job):
            found.append(JobWithSameChecks(other, cache.list_owned(POD, job["metadata"]["uid"])))
    return tuple(found)


def list_batch_jobs(resource: Object, cache: Cache) -> list[Object]:
    """List the Jobs of a FineTuneJob; of one that is deleted also its orphans (deletion with ``orphan``)."""
    meta = resource["metadata"]
    owned = cache.list_owned(JOB, meta["uid"])
    if not is_being_deleted(resource):
        return owned
    labelled = cache.list_labelled(JOB, meta["namespace"], JOB_LABEL, short(meta["name"]))
    return owned + [job for job in labelled if controller_uid(job) is None and _is_younger(job, resource)]


def group_pods(resource: Object, batch_jobs: list[Object], cache: Cache) -> dict[str, list[Object]]:
    """Group the pods of a FineTuneJob by the name of their Job.

    A pod may outlive its Job, also without a controller: it may be orphaned while its Job is still being deleted. The
    next attempt must wait until it has stopped. A pod of an older Job of the same name does not belong to the Job.
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


async def _look_up_missing_children(resource: Object, context: Context) -> None:
    """Ask the API server for Job and pod of the current run, if the cache lacks them.

    The cache may be behind, and a Job or pod that is gone ends its run.
    """
    meta, status = resource["metadata"], resource.get("status", {})
    for runs in map(status.get, RUNS):
        if not runs or "finishedAt" in runs[-1]:
            continue
        run = runs[-1]
        cached = context.cache.get(JOB, meta["namespace"], run["jobName"])
        if cached is None:
            batch_job = await context.kube.get(JOB, meta["namespace"], run["jobName"])
            if batch_job is not None and controller_uid(batch_job) == meta["uid"]:
                context.cache.put(JOB, batch_job)
        if "podName" in run and context.cache.get(POD, meta["namespace"], run["podName"]) is None:
            pod = await context.kube.get(POD, meta["namespace"], run["podName"])
            if pod is not None and pod["metadata"]["uid"] == run.get("podUid"):
                context.cache.put(POD, pod)


async def _look_up_missing_pods(resource: Object, batch_jobs: list[Object], context: Context) -> None:
    """Ask the API server for pods of ended Jobs that the cache lacks, unless the status has the run's end.

    The watch of the pods is behind that of the Jobs, or somebody has deleted the pod. The status may not know the run
    at all, because its last write was lost.
    """
    status = resource.get("status", {})
    runs = [run for name in RUNS for run in status.get(name, ())]
    recorded = {run["jobName"]: "finishedAt" in run for run in runs}
    for batch_job in batch_jobs:
        meta = batch_job["metadata"]
        is_settled = may_still_run(batch_job) or recorded.get(meta["name"], False)
        if not is_settled and not context.cache.list_owned(POD, meta["uid"]):
            pods, _ = await context.kube.list(POD, meta["namespace"], f"{JOB_NAME_LABEL}={meta['name']}")
            for pod in pods:
                context.cache.put(POD, pod)
