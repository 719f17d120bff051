"""Delete all custom resources before the chart is uninstalled.

First every AdapterDeployment: the operator, which still runs, takes its agents out of the Deployments. Then every
FineTuneJob and its Jobs: the garbage collector may not know a kind that is a few seconds old, and loses it with the CRD.
"""

import contextlib
import sys
import time
from collections.abc import Callable

from finetune_api import GROUP
from finetune_cli.cluster import Cluster, NotFoundError, Object, collection
from finetune_cli.errors import CliError

ROLE_LABEL = f"{GROUP}/role"
PAUSE_SECONDS = 0.5


def clean_up(cluster: Cluster, namespaces: list[str], timeout: float) -> None:
    """Delete the AdapterDeployments of the namespaces (none: of all), wait until nothing of theirs is left, and then do so with the FineTuneJobs.

    Raises CliError after ``timeout`` seconds, with what is still there.
    """
    places: list[str | None] = [*namespaces] or [None]
    deadline = time.monotonic() + timeout
    _delete_all(cluster, "AdapterDeployment", places)
    _wait(lambda: [name for place in places for name in _with_agents(cluster, place)], deadline, timeout)
    _delete_all(cluster, "FineTuneJob", places)
    _wait(lambda: [name for place in places for name in _jobs(cluster, place)], deadline, timeout)
    sys.stdout.write("nothing of any AdapterDeployment or FineTuneJob is left\n")


def _delete_all(cluster: Cluster, kind: str, places: list[str | None]) -> None:
    for place in places:
        for item in cluster.objects(kind, place):
            meta = item["metadata"]
            sys.stdout.write(f"deleting {kind} {meta['namespace']}/{meta['name']}\n")
            _delete(cluster, f"{collection(kind, meta['namespace'])}/{meta['name']}")


def _wait(left_now: Callable[[], list[str]], deadline: float, timeout: float) -> None:
    while left := left_now():
        if time.monotonic() >= deadline:
            raise CliError(
                f"after {timeout:.0f} s these still have what finetune-operator put in: {', '.join(left)}. "
                "Does the operator run? See its log, or uninstall with --no-hooks and take it out by hand (docs/troubleshooting.md)"
            )
        time.sleep(PAUSE_SECONDS)


def _delete(cluster: Cluster, path: str) -> None:
    with contextlib.suppress(NotFoundError):
        cluster.call("DELETE", path, {"propagationPolicy": "Background"})


def _jobs(cluster: Cluster, namespace: str | None) -> list[str]:
    """The Jobs of FineTuneJobs, each deleted once more: a pass of the operator may have been under way when its FineTuneJob went."""
    place = f"/namespaces/{namespace}" if namespace else ""
    items: list[Object] = cluster.call("GET", f"/apis/batch/v1{place}/jobs", {"labelSelector": ROLE_LABEL})["items"]
    for item in items:
        meta = item["metadata"]
        _delete(cluster, f"/apis/batch/v1/namespaces/{meta['namespace']}/jobs/{meta['name']}")
    return [f"Job {item['metadata']['namespace']}/{item['metadata']['name']}" for item in items]


def _with_agents(cluster: Cluster, namespace: str | None) -> list[str]:
    """The Deployments with an agent of ours and the ConfigMaps with desired state."""
    place = f"/namespaces/{namespace}" if namespace else ""
    found: list[str] = []
    for kind, path in (
        ("Deployment", f"/apis/apps/v1{place}/deployments"),
        ("ConfigMap", f"/api/v1{place}/configmaps"),
    ):
        items: list[Object] = cluster.call("GET", path, {"labelSelector": ROLE_LABEL})["items"]
        found += [f"{kind} {item['metadata']['namespace']}/{item['metadata']['name']}" for item in items]
    return found
