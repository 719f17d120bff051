"""What a report of a pod means: whose it is, and who is to look at it. A pod speaks only for itself."""

import time

from finetune_api.base import Lenient
from finetune_api.messages import AgentReport, ProgressReport
from finetune_operator.context import Context
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
from finetune_operator.observe import changed, nudge
from finetune_operator.report.store import PodId
from finetune_operator.resources.names import TRAINER


class Rejected(Exception):  # noqa: N818 -- an answer to the caller, not a failure of ours
    """The pod may not say this; the text says why."""


async def receive_progress(pod_id: PodId, report: Lenient, context: Context) -> None:
    """Keep a trainer's progress and queue its FineTuneJob. Raises ``Rejected`` for any other pod, ``KubeError``."""
    assert isinstance(report, ProgressReport)  # noqa: S101 -- the server parsed it as that
    pod = await _pod(pod_id, context)
    key = trainer_of(pod, context)
    if key is None:
        raise Rejected(f"pod {pod_id[0]}/{pod_id[1]} is not a trainer pod of a FineTuneJob")
    context.reports.put_progress(pod_id, report)
    context.queue.add(key)


async def receive_agent(pod_id: PodId, report: Lenient, context: Context) -> None:
    """Keep an agent's report and, if it says something new, queue the serving group of its pod."""
    assert isinstance(report, AgentReport)  # noqa: S101 -- the server parsed it as that
    pod = await _pod(pod_id, context)
    if context.reports.put_agent(pod_id, report, time.time()):
        nudge(POD, pod, context)


def trainer_of(pod: Object, context: Context) -> Key | None:
    """The FineTuneJob whose trainer Job controls the pod. Labels alone are not believed: anyone may write them."""
    labels = pod["metadata"].get("labels", {})
    if labels.get(ROLE_LABEL) != TRAINER:
        return None
    item = context.store.get(FINETUNE_JOB, pod["metadata"]["namespace"], finetune_job_of(pod) or "")
    jobs = context.store.owned(JOB, item["metadata"]["uid"]) if item else []
    if item is None or controller_uid(pod) not in [job["metadata"]["uid"] for job in jobs]:
        return None
    return key_of(FINETUNE_JOB, item)


async def _pod(pod_id: PodId, context: Context) -> Object:
    """The pod from the cache or, if its watch event is still on its way, from the API server."""
    namespace, name, uid = pod_id
    pod = context.store.get(POD, namespace, name)
    if pod is None or pod["metadata"]["uid"] != uid:
        pod = await context.kube.get(POD, namespace, name)
        if pod is None or pod["metadata"]["uid"] != uid:
            raise Rejected(f"pod {namespace}/{name} is gone")
        if ROLE_LABEL not in pod["metadata"].get("labels", {}):
            raise Rejected(f"pod {namespace}/{name} is not one of this operator's")
        changed(POD, pod, context)
    return context.store.get(POD, namespace, name) or pod
