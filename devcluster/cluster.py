"""Bring dev clusters up and down and describe them: the API for the demo, the tests and the benchmarks."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import controlplane, kwok, node, processes
from devcluster.binaries import ensure, locked, program
from devcluster.errors import DevClusterError
from devcluster.paths import state_root
from devcluster.progress import step
from devcluster.settings import Mode, Settings, all_names, checked_name, free_ports, load, new_tokens

CONTROL_PLANE_PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
LOCAL_SERVICE_CIDR = "10.96.0.0/16"


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up.

    `registry` (host:port, plain HTTP) and `node_address` are None without a real node.
    """

    name: str
    mode: Mode
    kubeconfig: Path
    state_dir: Path
    registry: str | None
    node_address: str | None

    def bin(self, name: str) -> Path:
        """Return the path of a program such as kubectl or kwok; it is built if no fitting version is installed."""
        return program(name)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl against this cluster and return its output.

        Raises:
            DevClusterError: kubectl failed; the message has its error output.
        """
        command = [str(self.bin("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        completed = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if completed.returncode != 0:
            raise DevClusterError(f"kubectl {' '.join(arguments)} failed: {completed.stderr.strip()}")
        return completed.stdout

    def exec_in_node(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a program inside the real node's namespaces (network, mounts, processes) and return how it ended."""
        return node.run_inside(_settings_of(self.name), argv)


def up(name: str = "dev", mode: Mode = "control-plane", gpus: int = 2, nodes: int = 10) -> Cluster:
    """Create the cluster `name`, or start its parts that do not run and keep its data.

    Args:
        name: Which cluster; several can run side by side.
        mode: What runs.
        gpus: Simulated GPUs of the real node, or of each fake node.
        nodes: Fake nodes in mode `kwok`.

    Raises:
        DevClusterError: A part does not come up; the message has the end of its log.
    """
    with _lock(name):
        settings = load(name)
        if settings is not None and settings.mode != mode:
            raise DevClusterError(
                f"cluster {name!r} exists with --mode {settings.mode}; "
                f"to have it with --mode {mode}, first: python -m devcluster down --name {name}"
            )
        if mode == "node":
            node.check_machine()
        ensure(_programs(mode))
        if settings is None:
            settings = _new_settings(name, mode)
            settings.save()
        try:
            _bring_up(settings, gpus=gpus, nodes=nodes)
        except DevClusterError as error:
            advice = "run `up` again to continue, or start over after"
            raise DevClusterError(f"{error}\n{advice}: python -m devcluster down --name {name}") from error
        return _cluster(settings)


def down(name: str = "dev") -> bool:
    """End all processes of the cluster `name` and delete its data; return whether there was such a cluster.

    It also works after a crash or a half-finished `up`, and touches nothing that this cluster did not start.
    """
    state_dir = state_root() / checked_name(name)
    with _lock(name) as lock:
        if not state_dir.exists():
            lock.unlink()
            return False
        with step(f"taking cluster {name!r} down"):
            if not node.tear_down(state_dir):
                # The data is deleted too, so that no process has to end in good order.
                for process in processes.names(state_dir):
                    processes.stop(state_dir, process, gently=False)
            shutil.rmtree(state_dir)
        lock.unlink()
        return True


def get(name: str = "dev") -> Cluster:
    """Return the cluster `name`. Raises DevClusterError where it was never brought up."""
    return _cluster(_settings_of(name))


def status(name: str = "dev") -> dict[str, Any]:
    """Return the cluster's mode, addresses and kubeconfig, and the pid and log of each process.

    The pid of a process that does not run is None.
    """
    settings = _settings_of(name)
    cluster = _cluster(settings)
    if settings.mode == "node":
        running = node.process_ids(settings)
    else:
        running = {
            process: processes.pid_of(settings.state_dir, process) for process in processes.names(settings.state_dir)
        }
    problem: str | None
    if not (settings.state_dir / "pki" / "complete").exists():
        problem = "it never came up"
    elif settings.mode == "node" and running[node.HOLDER] is None:
        # Without the link, the node's address could be somebody else's.
        problem = "the node's namespaces are gone"
    else:
        problem = controlplane.api(settings).problem()
    return {
        "name": name,
        "mode": settings.mode,
        "ready": problem is None and bool(running) and all(pid is not None for pid in running.values()),
        "problem": problem,
        "server": settings.server,
        "kubeconfig": str(cluster.kubeconfig),
        "stateDir": str(cluster.state_dir),
        "nodeAddress": cluster.node_address,
        "registry": cluster.registry,
        "processes": [
            {"name": process, "pid": pid, "log": str(node.log_file(settings, process))}
            for process, pid in sorted(running.items(), key=lambda item: _start_order(item[0]))
        ],
    }


def existing() -> list[str]:
    """Return the names of all clusters on this machine that were brought up and not taken down."""
    return all_names()


def _bring_up(settings: Settings, *, gpus: int, nodes: int) -> None:
    if settings.mode == "node":
        node.bring_up(settings, gpus=gpus)
        return
    with step(f"control plane of {settings.name!r}"):
        controlplane.bring_up(settings)
    if settings.mode == "kwok":
        with step(f"{nodes} fake nodes"):
            kwok.bring_up(settings, nodes=nodes, gpus=gpus)


def _new_settings(name: str, mode: Mode) -> Settings:
    if mode == "node":
        return node.new_settings(name)
    return Settings(
        name=name,
        mode=mode,
        address="127.0.0.1",
        ports=free_ports(),
        tokens=new_tokens(),
        service_cidr=LOCAL_SERVICE_CIDR,
    )


def _programs(mode: Mode) -> tuple[str, ...]:
    return CONTROL_PLANE_PROGRAMS + {"control-plane": (), "kwok": ("kwok",), "node": node.PROGRAMS}[mode]


def _settings_of(name: str) -> Settings:
    settings = load(name)
    if settings is None:
        raise DevClusterError(f"there is no cluster {name!r}; bring it up by: python -m devcluster up --name {name}")
    return settings


def _cluster(settings: Settings) -> Cluster:
    on_node = settings.mode == "node"
    return Cluster(
        name=settings.name,
        mode=settings.mode,
        kubeconfig=settings.kubeconfig(),
        state_dir=settings.state_dir,
        registry=node.registry_address(settings) if on_node else None,
        node_address=settings.address if on_node else None,
    )


def _start_order(process: str) -> int:
    order = ("node", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
    return order.index(process) if process in order else len(order)


@contextmanager
def _lock(name: str) -> Iterator[Path]:
    file = state_root() / f"{checked_name(name)}.lock"
    with locked(file):
        yield file
