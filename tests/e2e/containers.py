"""Kill containers as the kernel's out-of-memory killer would: by SIGKILL on the node, without Kubernetes."""

from devcluster.cluster import Cluster
from devcluster.nodeconfig import CONTAINERD_SOCKET
from tests.e2e.namespace import Object

CTR = ("ctr", f"--address={CONTAINERD_SOCKET}", "--namespace=k8s.io")


def kill(cluster: Cluster, pod: Object, container: str) -> None:
    """Send SIGKILL to a container's process."""
    process = process_id(cluster, container_id(pod, container))
    completed = cluster.exec_in_node(["kill", "-9", process])
    assert completed.returncode == 0, completed.stderr


def container_id(pod: Object, container: str) -> str:
    """Return the id of a pod's running container, which a restart changes."""
    for status in [*pod["status"].get("containerStatuses", []), *pod["status"].get("initContainerStatuses", [])]:
        if status["name"] == container and "running" in status["state"]:
            return str(status["containerID"].removeprefix("containerd://"))
    raise AssertionError(f"container {container} of {pod['metadata']['name']} does not run: {pod['status']}")


def process_id(cluster: Cluster, container: str) -> str:
    """Return the process id, on the node, of a container's first process."""
    listed = cluster.exec_in_node([*CTR, "task", "ls"])
    for line in listed.stdout.splitlines():
        fields = line.split()
        if fields[0] == container and fields[2] == "RUNNING":
            return fields[1]
    raise AssertionError(f"container {container} does not run:\n{listed.stdout}{listed.stderr}")
