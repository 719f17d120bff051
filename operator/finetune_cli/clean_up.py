"""Delete everything of finetune-operator before an uninstall, while the operator still runs.

AdapterDeployments are first, so that the operator removes its agents from the workloads. FineTuneJobs follow, and the
operator cleans up those with ``output.deletionPolicy: Delete``. Their Jobs are last: the garbage collector may not know
a kind that is a few seconds old, and loses it with the CRD.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable

from finetune_api import GROUP
from finetune_api.messages import DESIRED_KEY
from finetune_cli.cluster import Cluster, NotFoundError, Object, object_path
from finetune_cli.errors import CliError

ROLE_LABEL = f"{GROUP}/role"
FINALIZER = f"{GROUP}/delete-output"
"""Finalizer of FineTuneJobs whose objects the operator deletes before it lets them go."""
PAUSE_SECONDS = 0.5
OWN_AGENTS = "finetune-adapters.pods."
"""Prefix of the names of ConfigMaps for agents that users added. They stay as long as pods need them."""


def clean_up(cluster: Cluster, namespaces: list[str], timeout: float) -> None:
    """Delete the AdapterDeployments, then the FineTuneJobs, and wait each time until nothing is left.

    Args:
        cluster: The cluster.
        namespaces: Namespaces to clean up; all if it is empty.
        timeout: Seconds to wait.

    Raises:
        CliError: Objects still exist after ``timeout`` seconds; the message lists them.
    """
    scopes: list[str | None] = [*namespaces] or [None]
    deadline = time.monotonic() + timeout
    _delete_all(cluster, "AdapterDeployment", scopes)
    _wait(lambda: [name for scope in scopes for name in _list_with_agents(cluster, scope)], deadline, timeout)
    _delete_all(cluster, "FineTuneJob", scopes)
    _await_clean_ups(cluster, scopes, deadline)
    _wait(lambda: [name for scope in scopes for name in _delete_jobs(cluster, scope)], deadline, timeout)
    sys.stdout.write("nothing of any AdapterDeployment or FineTuneJob is left\n")


def _delete_all(cluster: Cluster, kind: str, scopes: list[str | None]) -> None:
    for scope in scopes:
        for item in cluster.objects(kind, scope):
            meta = item["metadata"]
            sys.stdout.write(f"deleting {kind} {meta['namespace']}/{meta['name']}\n")
            _delete(cluster, object_path(kind, meta["namespace"], meta["name"]))


def _await_clean_ups(cluster: Cluster, scopes: list[str | None], deadline: float) -> None:
    """Wait until the operator has cleaned up. At the deadline remove the finalizers, and print what is left in S3.

    Without the operator, the finalizers would keep the CRD from being deleted.
    """
    while jobs := [job for scope in scopes for job in cluster.objects("FineTuneJob", scope) if _has_finalizer(job)]:
        if time.monotonic() >= deadline:
            for job in jobs:
                _release(cluster, job)
            return
        time.sleep(PAUSE_SECONDS)


def _has_finalizer(job: Object) -> bool:
    return FINALIZER in job["metadata"].get("finalizers", ())


def _release(cluster: Cluster, job: Object) -> None:
    meta, s3 = job["metadata"], job["spec"]["output"]["s3"]
    prefix = s3.get("prefix") or f"{meta['namespace']}/{meta['name']}/{meta['uid'][:8]}"
    sys.stdout.write(
        f"FineTuneJob {meta['namespace']}/{meta['name']} was not cleaned up in time: its objects in "
        f"s3://{s3['bucket']}/{prefix} are left, delete them by hand\n"
    )
    finalizers = [name for name in meta["finalizers"] if name != FINALIZER]
    with contextlib.suppress(NotFoundError):
        path = object_path("FineTuneJob", meta["namespace"], meta["name"])
        cluster.patch(path, {"metadata": {"finalizers": finalizers}})


def _wait(list_remaining: Callable[[], list[str]], deadline: float, timeout: float) -> None:
    while remaining := list_remaining():
        if time.monotonic() >= deadline:
            raise CliError(
                f"after {timeout:.0f} s these are not cleaned up: {', '.join(remaining)}. Is the operator running? See "
                "its log, or uninstall with --no-hooks and clean them up by hand (docs/troubleshooting.md)"
            )
        time.sleep(PAUSE_SECONDS)


def _delete(cluster: Cluster, path: str) -> None:
    with contextlib.suppress(NotFoundError):
        cluster.call("DELETE", path, {"propagationPolicy": "Background"})


def _delete_jobs(cluster: Cluster, namespace: str | None) -> list[str]:
    """Delete and list the Jobs of FineTuneJobs, also those that the operator has just created."""
    scope = f"/namespaces/{namespace}" if namespace else ""
    items: list[Object] = cluster.call("GET", f"/apis/batch/v1{scope}/jobs", {"labelSelector": ROLE_LABEL})["items"]
    for item in items:
        meta = item["metadata"]
        _delete(cluster, f"/apis/batch/v1/namespaces/{meta['namespace']}/jobs/{meta['name']}")
    return [f"Job {item['metadata']['namespace']}/{item['metadata']['name']}" for item in items]


def _list_with_agents(cluster: Cluster, namespace: str | None) -> list[str]:
    """List the workloads with an agent of ours, and the ConfigMaps with desired state."""
    scope = f"/namespaces/{namespace}" if namespace else ""
    names: list[str] = []
    for kind, path in (
        ("Deployment", f"/apis/apps/v1{scope}/deployments"),
        ("StatefulSet", f"/apis/apps/v1{scope}/statefulsets"),
        ("ConfigMap", f"/api/v1{scope}/configmaps"),
    ):
        items: list[Object] = cluster.call("GET", path, {"labelSelector": ROLE_LABEL})["items"]
        items = [item for item in items if not _is_left_to_pods(item)]
        names += [f"{kind} {item['metadata']['namespace']}/{item['metadata']['name']}" for item in items]
    return names


def _is_left_to_pods(item: Object) -> bool:
    """Return whether the object is a ConfigMap for agents that users added, and already without adapters."""
    text = (item.get("data") or {}).get(DESIRED_KEY, "")
    is_empty = bool(text) and not json.loads(text).get("adapters")
    return is_empty and item["metadata"]["name"].startswith(OWN_AGENTS)
