"""Bring up what runs inside a node's namespaces.

`devcluster.node` starts it there by `python -m devcluster.inside NAME GPUS`.
"""

import sys
import time
from typing import Any

from devcluster import controlplane, nodeconfig, processes, runtime
from devcluster.api import Api, http_problem, is_ready
from devcluster.binaries import program
from devcluster.errors import DevClusterError
from devcluster.processes import Daemon
from devcluster.progress import step
from devcluster.settings import Settings, load

READY_WITHIN_SECONDS = 60.0
GPU = "nvidia.com/gpu"


def main(name: str, gpus: int) -> int:
    """Bring everything up; on failure print the reason on standard output and return 1."""
    settings = load(name)
    try:
        if settings is None:
            raise DevClusterError(f"cluster {name!r} has no settings in its state directory")
        bring_up(settings, gpus)
    except DevClusterError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


def bring_up(settings: Settings, gpus: int) -> None:
    """Start all processes of the node and its control plane, and wait until the node with its GPUs is Ready."""
    runtime.prepare_namespace(settings)
    nodeconfig.write_files(settings)
    with step(f"control plane of {settings.name!r}"):
        controlplane.bring_up(settings)
    with step(f"node of {settings.name!r}"):
        server = controlplane.api(settings)
        for path, body in nodeconfig.dns_access():
            server.apply(path, body)
        runtime.bring_up(settings)
        processes.ensure(settings.state_dir, [kubelet(settings), kube_proxy(settings), coredns(settings)])
        _await_ready(server, settings.node_name, gpus)


def kubelet(settings: Settings) -> Daemon:
    """Return the kubelet's process."""
    return Daemon(
        "kubelet",
        [
            str(program("kubelet")),
            f"--config={settings.state_dir / 'kubelet.yaml'}",
            f"--kubeconfig={settings.kubeconfig('kubelet')}",
            f"--root-dir={nodeconfig.KUBELET_ROOT}",
            f"--cert-dir={nodeconfig.KUBELET_ROOT}/pki",
            f"--hostname-override={settings.node_name}",
            f"--node-ip={settings.address}",
        ],
        lambda: http_problem("http://127.0.0.1:10248/healthz"),
        configuration=nodeconfig.kubelet(settings),
    )


def kube_proxy(settings: Settings) -> Daemon:
    """Return the process that makes service addresses work."""
    return Daemon(
        "kube-proxy",
        [
            str(program("kube-proxy")),
            f"--kubeconfig={settings.kubeconfig('kube-proxy')}",
            f"--hostname-override={settings.node_name}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={settings.pod_cidr}",
            "--healthz-bind-address=127.0.0.1:10256",
            # By default a Service's new address may take a second to work.
            "--iptables-min-sync-period=100ms",
            # The defaults would change the whole machine's connection tracking, not this node's.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ],
        lambda: http_problem("http://127.0.0.1:10256/healthz"),
    )


def coredns(settings: Settings) -> Daemon:
    """Return the process of the cluster's DNS."""
    return Daemon(
        "coredns",
        [str(program("coredns")), "-conf", str(settings.state_dir / "Corefile")],
        lambda: http_problem("http://127.0.0.1:8181/ready"),
        configuration=nodeconfig.corefile(settings),
    )


def _await_ready(server: Api, name: str, gpus: int) -> None:
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    while True:
        node = server.get(f"/api/v1/nodes/{name}")
        # A restarted kubelet removes resources that it does not know, so that each pass adds them again.
        if node is not None and node["status"].get("capacity") and _gpus(node) != (str(gpus), str(gpus)):
            node = server.json_patch(f"/api/v1/nodes/{name}/status", _gpu_patch(gpus))
        if node is not None and is_ready(node) and _gpus(node) == (str(gpus), str(gpus)):
            return
        if time.monotonic() > deadline:
            conditions = node["status"].get("conditions") if node else "it never registered"
            raise DevClusterError(
                f"the node is not Ready after {READY_WITHIN_SECONDS:.0f} s ({conditions}); see logs/kubelet.log"
            )
        time.sleep(0.1)


def _gpus(node: dict[str, Any]) -> tuple[str | None, str | None]:
    return node["status"].get("capacity", {}).get(GPU), node["status"].get("allocatable", {}).get(GPU)


def _gpu_patch(gpus: int) -> list[dict[str, Any]]:
    return [
        {"op": "add", "path": f"/status/{field}/{GPU.replace('/', '~1')}", "value": str(gpus)}
        for field in ("capacity", "allocatable")
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
