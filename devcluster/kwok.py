"""Run kwok, which plays the kubelet of any number of fake nodes, and create those nodes."""

import time
from pathlib import Path
from typing import Any

from devcluster import controlplane, processes
from devcluster.api import Api, http_problem, is_ready
from devcluster.binaries import program
from devcluster.errors import DevClusterError
from devcluster.processes import Daemon
from devcluster.settings import Settings

STAGES = Path(__file__).parent / "kwok-stages.yaml"
LABEL = "finetune-operator.io/fake-node"
READY_WITHIN_SECONDS = 120.0


def bring_up(settings: Settings, *, nodes: int, gpus: int) -> list[str]:
    """Start kwok and create exactly `nodes` fake nodes with `gpus` GPUs each; return the started processes."""
    started = processes.ensure(settings.state_dir, [kwok(settings)])
    server = controlplane.api(settings)
    node_list = server.get(f"/api/v1/nodes?labelSelector={LABEL}") or {}
    present = {node["metadata"]["name"] for node in node_list.get("items", [])}
    wanted_nodes = {f"fake-{number}": node(f"fake-{number}", gpus) for number in range(nodes)}
    for name in sorted(present - wanted_nodes.keys()):
        server.delete(f"/api/v1/nodes/{name}")
    for name, body in wanted_nodes.items():
        server.apply(f"/api/v1/nodes/{name}", body)
        server.apply(f"/api/v1/nodes/{name}/status", body)
    _await_ready(server, len(wanted_nodes))
    return started


def kwok(settings: Settings) -> Daemon:
    """Return kwok's process; kwok-stages.yaml says what it does with nodes and pods."""
    port = settings.ports["kwok"]
    return Daemon(
        "kwok",
        [
            str(program("kwok")),
            f"--kubeconfig={settings.kubeconfig()}",
            f"--config={STAGES}",
            f"--manage-nodes-with-label-selector={LABEL}",
            "--manage-all-nodes=false",
            f"--server-address=127.0.0.1:{port}",
            "--cidr=10.128.0.0/9",
            "--node-ip=127.0.0.1",
            "--node-lease-duration-seconds=40",
        ],
        lambda: http_problem(f"http://127.0.0.1:{port}/healthz"),
        configuration=STAGES.read_text(),
    )


def _await_ready(server: Api, nodes: int) -> None:
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    while True:
        nodes_found = server.get(f"/api/v1/nodes?labelSelector={LABEL}")["items"]
        ready = [node for node in nodes_found if is_ready(node)]
        if len(ready) == nodes == len(nodes_found):
            return
        if time.monotonic() > deadline:
            raise DevClusterError(f"only {len(ready)} of {nodes} fake nodes are Ready; see logs/kwok.log")
        time.sleep(0.1)


def node(name: str, gpus: int) -> dict[str, Any]:
    """Return a fake node with `gpus` GPUs that has room for hundreds of pods."""
    capacity = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "2Ti", "pods": "1000", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {LABEL: "true", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
        },
        "status": {"capacity": capacity, "allocatable": capacity},
    }
