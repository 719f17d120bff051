"""Install both CRDs in a cluster."""

from pathlib import Path

from devcluster.cluster import Cluster
from devcluster.errors import DevClusterError
from tools.testing.waiting import wait_for

CRDS = Path(__file__).parents[2] / "crds"


def install_crds(cluster: Cluster) -> None:
    """Install both CRDs, and wait until they are served."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    wait_for(lambda: _are_served(cluster), 30, "both kinds are served")


def _are_served(cluster: Cluster) -> bool:
    """Return whether the API server knows both kinds, which it does a moment after their CRDs are established."""
    try:
        cluster.kubectl("get", "finetunejobs,adapterdeployments", "-A")
    except DevClusterError:
        return False
    return True
