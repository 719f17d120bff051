"""Receive a report: check that the pod may send it, store it, and enqueue the key that it concerns."""

from finetune_api.base import Lenient
from finetune_api.messages import AgentReport, ProgressReport
from finetune_operator.context import Context
from finetune_operator.enqueue import enqueue
from finetune_operator.ingest import ingest_change
from finetune_operator.kube.kinds import (
    FINETUNE_JOB,
    JOB,
    POD,
    ROLE_LABEL,
    Key,
    Object,
    controller_uid,
    finetune_job_of,
    key_of,
)
from finetune_operator.pod_reports import PodId
from finetune_operator.resources.names import TRAINER


class Rejected(Exception):  # noqa: N818 -- an answer to the caller, not a failure of ours
    """The pod may not send this report; the message says why."""


async def receive_progress(pod_id: PodId, report: Lenient, context: Context) -> None:
    """Store a trainer's progress and enqueue its FineTuneJob.

    Raises ``Rejected`` for a pod that is not a trainer, and ``KubeError``.
    """
    assert isinstance(report, ProgressReport)  # noqa: S101 -- the server parsed it as that
    pod = await _find_pod(pod_id, context)
    key = find_trained_job(pod, context)
    if key is None:
        raise Rejected(f"pod {pod_id[0]}/{pod_id[1]} is not a trainer pod of a FineTuneJob")
    context.pod_reports.put_progress(pod_id, report)
    context.queue.add(key)


async def receive_agent(pod_id: PodId, report: Lenient, context: Context) -> None:
    """Store an agent's report and, if it differs from the previous one, enqueue its serving group.

    Raises ``Rejected`` for a pod that is not the operator's, and ``KubeError``.
    """
    assert isinstance(report, AgentReport)  # noqa: S101 -- the server parsed it as that
    pod = await _find_pod(pod_id, context)
    if context.pod_reports.put_agent(pod_id, report):
        enqueue(POD, pod, context)


def find_trained_job(pod: Object, context: Context) -> Key | None:
    """Find the FineTuneJob whose trainer Job controls the pod.

    Anybody may write labels, so the owner decides.
    """
    labels = pod["metadata"].get("labels", {})
    if labels.get(ROLE_LABEL) != TRAINER:
        return None
    resource = context.cache.get(FINETUNE_JOB, pod["metadata"]["namespace"], finetune_job_of(pod) or "")
    batch_jobs = context.cache.list_owned(JOB, resource["metadata"]["uid"]) if resource else []
    if resource is None or controller_uid(pod) not in [batch_job["metadata"]["uid"] for batch_job in batch_jobs]:
        return None
    return key_of(FINETUNE_JOB, resource)


async def _find_pod(pod_id: PodId, context: Context) -> Object:
    """Find the pod in the cache or at the API server. Raises ``Rejected``.

    The watch event of a new pod may come after its first report.
    """
    namespace, name, uid = pod_id
    pod = context.cache.get(POD, namespace, name)
    if pod is None or pod["metadata"]["uid"] != uid:
        pod = await context.kube.get(POD, namespace, name)
        if pod is None or pod["metadata"]["uid"] != uid:
            raise Rejected(f"pod {namespace}/{name} is gone")
        if ROLE_LABEL not in pod["metadata"].get("labels", {}):
            raise Rejected(f"pod {namespace}/{name} is not one of this operator's")
        ingest_change(POD, pod, context)
    return context.cache.get(POD, namespace, name) or pod
