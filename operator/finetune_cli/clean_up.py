"""Before an uninstall: every AdapterDeployment is deleted, and the operator, which still runs, takes its agents out of the Deployments."""

import sys
import time

from finetune_api import GROUP
from finetune_cli.cluster import Cluster, NotFoundError, Object, collection
from finetune_cli.errors import CliError

ROLE_LABEL = f"{GROUP}/role"
PAUSE_SECONDS = 0.5


def clean_up(cluster: Cluster, namespaces: list[str], timeout: float) -> None:
    """Delete the AdapterDeployments of the namespaces (none: of all) and wait until nothing of theirs is left.

    Raises CliError after ``timeout`` seconds, with what is still there.
    """
    places: list[str | None] = [*namespaces] or [None]
    for place in places:
        for item in cluster.objects("AdapterDeployment", place):
            meta = item["metadata"]
            sys.stdout.write(f"deleting AdapterDeployment {meta['namespace']}/{meta['name']}\n")
            _delete(cluster, meta["namespace"], meta["name"])
    deadline = time.monotonic() + timeout
    while left := [name for place in places for name in _left(cluster, place)]:
        if time.monotonic() >= deadline:
            raise CliError(
                f"after {timeout:.0f} s these still have what finetune-operator put in: {', '.join(left)}. "
                "Does the operator run? See its log, or uninstall with --no-hooks and take it out by hand (docs/troubleshooting.md)"
            )
        time.sleep(PAUSE_SECONDS)
    sys.stdout.write("nothing of any AdapterDeployment is left\n")


def _delete(cluster: Cluster, namespace: str, name: str) -> None:
    try:
        cluster.call("DELETE", f"{collection('AdapterDeployment', namespace)}/{name}")
    except NotFoundError:
        return


def _left(cluster: Cluster, namespace: str | None) -> list[str]:
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
