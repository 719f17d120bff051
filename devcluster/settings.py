"""Keep the addresses, ports and tokens of a cluster, which are chosen at its first `up`."""

import dataclasses
import json
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from devcluster.errors import DevClusterError
from devcluster.paths import state_root

Mode = Literal["control-plane", "kwok", "node"]
MODES: tuple[Mode, ...] = get_args(Mode)

# User name and group with which each component authenticates to the API server.
USERS = {
    "admin": ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kubelet": ("system:node:{node}", "system:nodes"),
    "kube-proxy": ("system:kube-proxy", ""),
    "coredns": ("system:coredns", ""),
}
PORTS = {
    "etcd": 2379,
    "etcd-peer": 2380,
    "kube-apiserver": 6443,
    "kube-controller-manager": 10257,
    "kube-scheduler": 10259,
    "kwok": 10247,
}


@dataclass(frozen=True)
class Settings:
    """A cluster's settings.

    `address` is where the API server listens. In mode `node` it is the node's own address, `host_address` the host's
    end of the link, `cidr` the /16 with the addresses of pods, services and link, and `image_store` is where
    containerd keeps images.
    """

    name: str
    mode: Mode
    address: str
    ports: dict[str, int]
    tokens: dict[str, str]
    service_cidr: str
    pod_cidr: str = ""
    cidr: str = ""
    host_address: str = ""
    image_store: str = ""

    @property
    def state_dir(self) -> Path:
        """Return the directory with everything of this cluster: settings, keys, data, logs, process records."""
        return state_root() / self.name

    @property
    def server(self) -> str:
        """Return the API server's URL."""
        return f"https://{self.address}:{self.ports['kube-apiserver']}"

    @property
    def node_name(self) -> str:
        """Return the name of the real node (mode `node`)."""
        return f"{self.name}-node"

    def kubeconfig(self, user: str = "admin") -> Path:
        """Return the kubeconfig file of `user`, one of the keys of USERS."""
        return self.state_dir / ("kubeconfig" if user == "admin" else f"kubeconfigs/{user}")

    def save(self) -> None:
        """Write the settings into the state directory, readable by the owner only (they hold tokens)."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.state_dir.chmod(0o755)
        file = self.state_dir / "cluster.json"
        partial = file.with_suffix(".partial")
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=2))
        partial.rename(file)


def load(name: str) -> Settings | None:
    """Return the settings of the cluster `name`, None when it has none (never brought up, or taken down)."""
    file = state_root() / checked_name(name) / "cluster.json"
    try:
        return Settings(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise DevClusterError(
            f"{file} is damaged ({error}); remove what is left by: python -m devcluster down --name {name}"
        ) from error


def all_names() -> list[str]:
    """Return the names of all clusters that have a state directory."""
    return sorted(file.parent.name for file in state_root().glob("*/cluster.json"))


def checked_name(name: str) -> str:
    """Return `name` if it can be a cluster's name. Raises DevClusterError otherwise."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise DevClusterError(
            f"cluster name {name!r}: use up to 40 lower-case letters, digits and dashes, "
            "beginning and ending without a dash"
        )
    return name


def new_tokens() -> dict[str, str]:
    """Return a fresh bearer token for each of USERS."""
    return {user: secrets.token_hex(16) for user in USERS}


def free_ports() -> dict[str, int]:
    """Return ports of 127.0.0.1 that are free now, one for each of PORTS."""
    sockets = {name: socket.socket() for name in PORTS}
    try:
        for listener in sockets.values():
            listener.bind(("127.0.0.1", 0))
        return {name: listener.getsockname()[1] for name, listener in sockets.items()}
    finally:
        for listener in sockets.values():
            listener.close()
