"""Run ``finetune logs``: print the log of a FineTuneJob's preflight or trainer pod."""

import sys
import time

from finetune_api import GROUP
from finetune_cli.cluster import Cluster, GoneError, Object
from finetune_cli.errors import CliError

JOB_LABEL, ROLE_LABEL = f"{GROUP}/finetunejob", f"{GROUP}/role"
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
PAUSE_SECONDS = 1.0


def logs(cluster: Cluster, name: str, attempt: int | str | None, follow: bool) -> None:
    """Print the log of one pod.

    Args:
        cluster: The cluster.
        name: Name of the FineTuneJob.
        attempt: Number of an attempt, ``preflight``, or None for the newest pod.
        follow: Go on until the pod ends.

    Raises:
        CliError: There is no such pod, or it has not started.
    """
    job = cluster.find_one("FineTuneJob", name)
    pod = _pod(cluster, job, attempt)
    while follow and not _started(pod):
        time.sleep(PAUSE_SECONDS)
        pod = _pod(cluster, job, attempt)
    if not _started(pod):
        raise CliError(f"pod {pod['metadata']['name']} has not started: {waiting_reason(pod, _container(pod))}")
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{pod['metadata']['name']}/log"
    query = {"container": _container(pod), **({"follow": "true"} if follow else {})}
    try:
        for line in cluster.lines(path, query, None):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    except GoneError as error:
        raise CliError(f"the log of pod {pod['metadata']['name']} broke off: {error}") from error


def _pod(cluster: Cluster, job: Object, attempt: int | str | None) -> Object:
    name = job["metadata"]["name"]
    selector = f"{JOB_LABEL}={name}"
    if attempt == "preflight":
        selector += f",{ROLE_LABEL}=preflight"
    entry = _attempt(job, attempt)
    if entry is not None:
        selector += f",{ROLE_LABEL}=trainer,{JOB_NAME_LABEL}={entry['jobName']}"
    pods = cluster.call("GET", f"/api/v1/namespaces/{cluster.namespace}/pods", {"labelSelector": selector})["items"]
    if entry is not None and "podUid" in entry:
        pods = [pod for pod in pods if pod["metadata"]["uid"] == entry["podUid"]]
    if not pods or (isinstance(attempt, int) and entry is None):
        raise CliError(
            f"FineTuneJob {name} has no such pod (any more). "
            f"Its state: {job.get('status', {}).get('phase') or 'Pending'}; see: finetune status {name}"
        )
    newest: Object = max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])
    return newest


def _attempt(job: Object, number: int | str | None) -> Object | None:
    """Return the attempt of this number from the status; None if there was none."""
    attempts = job.get("status", {}).get("attempts") or ()
    return next((entry for entry in attempts if entry["number"] == number), None)


def _state(pod: Object, container: str) -> Object:
    for entry in pod.get("status", {}).get("containerStatuses") or ():
        if entry["name"] == container:
            return dict(entry.get("state") or {})
    return {}


def _container(pod: Object) -> str:
    """Return the name of our container, which is the pod's role; others may have added containers."""
    role: str = pod["metadata"]["labels"][ROLE_LABEL]
    return role


def _started(pod: Object) -> bool:
    return bool(_state(pod, _container(pod)).keys() & {"running", "terminated"})


def waiting_reason(pod: Object, container: str) -> str:
    """Return why a container does not run."""
    waiting = _state(pod, container).get("waiting")
    if waiting:
        return f"{waiting.get('reason')}: {waiting.get('message', '')}".rstrip(": ")
    for entry in pod.get("status", {}).get("conditions") or []:
        if entry["status"] == "False" and entry.get("message"):
            return str(entry["message"])
    return str(pod.get("status", {}).get("phase", "Pending"))
