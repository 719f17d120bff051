"""Use the user's own cluster in place of the dev cluster: REGISTRY and CONTEXT, as `make demo` takes them."""

import atexit
import contextlib
import os
import subprocess
from pathlib import Path

from devcluster.binaries import program
from devcluster.cluster import Cluster
from devcluster.targets import ClusterTarget, Images
from tests.e2e.namespace import Namespace

FORWARDS = contextlib.ExitStack()
"""Ends the forwarding when the tests end."""
atexit.register(FORWARDS.close)


def is_given() -> bool:
    """Return whether the tests use the user's own cluster."""
    return bool(os.environ.get("REGISTRY"))


def load_cluster(directory: Path) -> Cluster:
    """Return the cluster of the chosen context, with a kubeconfig in `directory` that contains it alone."""
    context = os.environ.get("CONTEXT")
    chosen = [f"--context={context}"] if context else []
    command = [str(program("kubectl")), *chosen, "config", "view", "--minify", "--raw", "--flatten"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, f"REGISTRY is set, but kubectl finds no cluster: {completed.stderr}"
    kubeconfig = directory / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(completed.stdout)
    return Cluster("own", "node", kubeconfig, directory, registry=os.environ["REGISTRY"], node_address=None)


def address(namespace: Namespace, service: str, port: int) -> str:
    """Return a Service's URL for this machine; kubectl forwards it until the tests end where the node is elsewhere."""
    if namespace.cluster.node_address:
        return f"http://{namespace.get('service', service)['spec']['clusterIP']}:{port}"
    reached = ClusterTarget("the user's own", Images("", ""), options=(f"--kubeconfig={namespace.cluster.kubeconfig}",))
    return FORWARDS.enter_context(reached.forwarded(namespace.name, service, port))
