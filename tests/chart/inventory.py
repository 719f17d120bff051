"""What is in a cluster: to see that something leaves it as it was."""

import contextlib
import time

from devcluster.cluster import Cluster
from devcluster.errors import DevClusterError

PASSING = ("events", "events.events.k8s.io", "leases.coordination.k8s.io", "componentstatuses")
"""What comes and goes by itself."""
REPLACED = ("Pod", "ReplicaSet", "EndpointSlice", "Endpoints")
"""What a Deployment makes anew, under another name, when it changes."""


def inventory(cluster: Cluster) -> set[tuple[str, ...]]:
    """Kind, namespace and name of every object of the cluster."""
    resources = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    kinds = ",".join(kind for kind in resources if kind not in PASSING)
    form = "custom-columns=K:.kind,S:.metadata.namespace,N:.metadata.name"
    listed = cluster.kubectl("get", kinds, "-A", "--no-headers", "-o", form, "--ignore-not-found")
    return {tuple(line.split()) for line in listed.splitlines()}


def eventually_same(cluster: Cluster, expected: set[tuple[str, ...]], excluded_kinds: tuple[str, ...] = ()) -> None:
    """Wait until the cluster holds exactly what is expected, apart from some kinds: garbage collection takes time."""

    def compared(items: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
        return {item for item in items if item[0] not in excluded_kinds}

    for _ in range(180):
        # A kind may vanish between the list of kinds and the list of its objects.
        with contextlib.suppress(DevClusterError):
            if compared(inventory(cluster)) == compared(expected):
                return
        time.sleep(0.5)
    installed, documented = compared(inventory(cluster)), compared(expected)
    assert installed == documented, (
        f"left behind: {sorted(installed - documented)}; missing: {sorted(documented - installed)}"
    )
