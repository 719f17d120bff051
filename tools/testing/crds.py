"""Install both CRDs, or those of another project, in a cluster."""

import json
from collections.abc import Sequence
from pathlib import Path

from devcluster.cluster import Cluster
from devcluster.errors import DevClusterError
from tools.testing.waiting import wait_for

CRDS = Path(__file__).parents[2] / "crds"


def install_crds(cluster: Cluster) -> None:
    """Install both CRDs, and wait until they are served."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    wait_for(lambda: _are_served(cluster), 30, "both kinds are served")


def apply_crds(cluster: Cluster, files: Sequence[Path]) -> None:
    """Apply other CRDs, and wait until they are established. Right after it, they may have no conditions yet."""
    arguments = [argument for file in files for argument in ("-f", str(file))]
    cluster.kubectl("apply", "--server-side", *arguments)

    def are_established() -> bool:
        content = json.loads(cluster.kubectl("get", "-o", "json", *arguments))
        return all(
            any(
                (item["type"], item["status"]) == ("Established", "True")
                for item in crd.get("status", {}).get("conditions") or ()
            )
            for crd in content.get("items", [content])
        )

    wait_for(are_established, 60, "the CRDs are established")


def _are_served(cluster: Cluster) -> bool:
    """Return whether the API server knows both kinds, which it does a moment after their CRDs are established."""
    try:
        cluster.kubectl("get", "finetunejobs,adapterdeployments", "-A")
    except DevClusterError:
        return False
    return True
