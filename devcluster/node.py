"""Manage the host's side of a real node: its namespaces (network, mounts, processes) and the link to them.

A cluster with a real node lives in namespaces of its own, which one process keeps open. So its ports never collide,
several such clusters run side by side, the host's bridges and iptables are never touched, and that process ends all
with it. The host reaches the node, its pods and its services through a pair of virtual interfaces and one route. Pods
reach the host's end of that link and nothing beyond it, which would need rules in the host's iptables.
"""

import hashlib
import ipaddress
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devcluster import cgroups, debian, processes
from devcluster.binaries import existing, locked, program
from devcluster.cache import cached
from devcluster.errors import DevClusterError
from devcluster.paths import cache_dir, state_root
from devcluster.processes import Daemon
from devcluster.progress import say, step
from devcluster.settings import PORTS, Settings, load, new_tokens

PROGRAMS = ("kubelet", "kube-proxy", "coredns", "pause")
REGISTRY_PORT = 5000
REGISTRY_PACKAGE = "docker-registry"
HOLDER = "node"

# What is needed on PATH (or at a path), and the Debian package that has it.
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
}


def check_machine() -> None:
    """Install the Debian packages that a real node needs.

    Raises:
        DevClusterError: This user is not root, or this machine is not Debian and lacks some of them.
    """
    if os.geteuid() != 0:
        raise DevClusterError(
            "--mode node starts a kubelet and containers and so needs root; "
            "without it there are --mode control-plane and --mode kwok"
        )
    _use_sbin()
    debian.install(PACKAGES, "--mode node")
    registry_program()


def registry_program() -> Path:
    """Return the image registry's program: from PATH, else from Debian's package in the cache."""
    for name in ("registry", REGISTRY_PACKAGE):
        if installed := existing(name):
            return installed
    recipe = f"{REGISTRY_PACKAGE} 1"
    directory = cached(REGISTRY_PACKAGE, recipe, "fetching the image registry", "seconds", _unpack_registry)
    return directory / "usr" / "bin" / REGISTRY_PACKAGE


def _unpack_registry(target: Path) -> None:
    debian.unpack(REGISTRY_PACKAGE, target)


def new_settings(name: str) -> Settings:
    """Return and save settings for a new cluster with a real node, with addresses and an image store of its own."""
    with locked(cache_dir() / "containerd" / "lock"):
        network = _free_network()
        address, host_address = str(network[-2]), str(network[-3])
        settings = Settings(
            name=name,
            mode="node",
            address=address,
            host_address=host_address,
            ports=dict(PORTS),
            tokens=new_tokens(),
            cidr=str(network),
            pod_cidr=str(next(network.subnets(new_prefix=17))),
            service_cidr=str(list(network.subnets(new_prefix=18))[2]),
            image_store=str(_free_image_store(state_root() / name)),
        )
        settings.save()
        return settings


def bring_up(settings: Settings, *, gpus: int) -> None:
    """Start the namespaces, the link and everything inside.

    Raises:
        DevClusterError: A part does not come up; the message has the reason and the end of a log.
    """
    _use_sbin()
    with step(f"namespaces and link of {settings.name!r}"):
        processes.ensure(_host_dir(settings.state_dir), [_holder()])
        init_pid = _first_process(settings.state_dir)
        if init_pid is None:
            raise DevClusterError(
                f"the node's namespaces did not open; {processes.log_tail(_host_dir(settings.state_dir), HOLDER)}"
            )
        _connect(settings, init_pid)
    _bring_up_inside(init_pid, settings, gpus)


def tear_down(state_dir: Path) -> bool:
    """End the node of a state directory and clean the host up; return False if there never was a node."""
    host_dir = _host_dir(state_dir)
    if not host_dir.exists():
        return False
    _use_sbin()
    init_pid = _first_process(state_dir)
    # The kernel ends every process of a process namespace with its first one; mounts and interfaces go with the
    # namespaces.
    processes.stop(host_dir, HOLDER, gently=False)
    _await_gone(init_pid)
    subprocess.run(["ip", "link", "delete", _link_name(state_dir)], capture_output=True, check=False)
    cgroups.remove(cgroups.name(state_dir))
    settings = load(state_dir.name)
    if settings is not None and settings.image_store:
        (Path(settings.image_store) / "owner").unlink(missing_ok=True)
    return True


def run_inside(settings: Settings, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program inside the node's namespaces and return how it ended, with its output."""
    init_pid = _first_process(settings.state_dir)
    if init_pid is None:
        raise DevClusterError(
            f"the node of {settings.name!r} does not run; "
            f"repair it by: python -m devcluster up --name {settings.name} --mode node"
        )
    return subprocess.run(
        _command_inside(init_pid, argv),
        env={**os.environ, **_python_path()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def process_ids(settings: Settings) -> dict[str, int | None]:
    """Return the pid of each process as the host sees it; None where it does not run."""
    holder = processes.pid_of(_host_dir(settings.state_dir), HOLDER)
    pids: dict[str, int | None] = {HOLDER: holder}
    seen_inside = {local: pid for pid, local in _members(_first_process(settings.state_dir)).items()}
    for name in processes.names(settings.state_dir):
        recorded = processes.recorded(settings.state_dir, name)
        pid = seen_inside.get(recorded[0]) if recorded else None
        alive = pid is not None and recorded is not None and processes.start_time(pid) == recorded[1]
        pids[name] = pid if alive else None
    return pids


def log_file(settings: Settings, process: str) -> Path:
    """Return where a process of the cluster writes its output."""
    return processes.log_file(_host_dir(settings.state_dir) if process == HOLDER else settings.state_dir, process)


def registry_address(settings: Settings) -> str:
    """Return host:port of the node's image registry (plain HTTP)."""
    return f"{settings.address}:{REGISTRY_PORT}"


def _holder() -> Daemon:
    """Return the process that keeps the namespaces open."""
    command = [
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child=SIGKILL",
        "--mount-proc",
        str(program("pause")),
    ]
    return Daemon(HOLDER, command, lambda: None)


def _first_process(state_dir: Path) -> int | None:
    """Return the pid of the first process inside the namespaces, None when they are not open."""
    holder = processes.pid_of(_host_dir(state_dir), HOLDER)
    deadline = time.monotonic() + 5.0
    while holder is not None and time.monotonic() < deadline:
        try:
            children = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "pause":
                return int(children[0])
        except FileNotFoundError:
            return None
        time.sleep(0.01)
    return None


def _bring_up_inside(init_pid: int, settings: Settings, gpus: int) -> None:
    """Run `devcluster.inside` in the namespaces: error output is progress, standard output a failure's reason."""
    command = _command_inside(init_pid, [sys.executable, "-m", "devcluster.inside", settings.name, str(gpus)])
    with subprocess.Popen(
        command,
        env={**os.environ, **_python_path()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr or ():
            say(line.rstrip("\n"))
        reason = process.stdout.read().strip() if process.stdout else ""
    if process.returncode != 0:
        raise DevClusterError(reason or f"bringing the node up ended with status {process.returncode}")


def _command_inside(init_pid: int, argv: Sequence[str]) -> list[str]:
    return ["nsenter", f"--target={init_pid}", "--net", "--mount", "--pid", "--", *argv]


def _python_path() -> dict[str, str]:
    entries = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(entries)}


def _connect(settings: Settings, init_pid: int) -> None:
    """Create the link between host and node, with its addresses and routes."""
    link = _link_name(settings.state_dir)
    inside = ["nsenter", f"--target={init_pid}", "--net", "--"]
    if subprocess.run([*inside, "ip", "link", "show", "eth0"], capture_output=True, check=False).returncode != 0:
        # The kernel may remove the link of namespaces that have just ended a moment later.
        subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
        _ip(["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(init_pid)])
    _ip([*inside, "ip", "link", "set", "lo", "up"])
    for prefix, interface, address in (([], link, settings.host_address), (inside, "eth0", settings.address)):
        _ip([*prefix, "ip", "address", "replace", f"{address}/30", "dev", interface])
        _ip([*prefix, "ip", "link", "set", interface, "up"])
    _ip([*inside, "ip", "route", "replace", "default", "via", settings.host_address])
    _ip(["ip", "route", "replace", settings.cidr, "via", settings.address])


def _ip(command: list[str]) -> None:
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        raise DevClusterError(
            f"the link to the node could not be made: `{' '.join(command)}`: {completed.stderr.strip()}"
        )


def _free_network() -> ipaddress.IPv4Network:
    """Return the first 10.X.0.0/16 that neither this machine's routes and addresses nor another cluster uses."""
    used_networks = [
        ipaddress.ip_network(entry["dst"], strict=False) for entry in _ip_json("route") if entry["dst"] != "default"
    ]
    for interface in _ip_json("address"):
        used_networks += [
            ipaddress.ip_network(f"{address['local']}/{address['prefixlen']}", strict=False)
            for address in interface["addr_info"]
            if address["family"] == "inet"
        ]
    for file in state_root().glob("*/cluster.json"):
        other = load(file.parent.name)
        if other is not None and other.cidr:
            used_networks.append(ipaddress.ip_network(other.cidr))
    for octet in range(200, 250):
        candidate = ipaddress.IPv4Network(f"10.{octet}.0.0/16")
        if not any(candidate.overlaps(network) for network in used_networks):
            return candidate
    raise DevClusterError(
        "no free network of 10.200.0.0/16 to 10.249.0.0/16 for another node: take a cluster down, see `ip route`"
    )


def _ip_json(subject: str) -> list[dict[str, Any]]:
    completed = subprocess.run(["ip", "-4", "-json", subject, "show"], capture_output=True, text=True, check=True)
    parsed: list[dict[str, Any]] = json.loads(completed.stdout or "[]")
    return parsed


def _free_image_store(state_dir: Path) -> Path:
    """Reserve a directory of unpacked images that no running cluster uses; a later cluster may use it again."""
    for number in range(100):
        store = cache_dir() / "containerd" / str(number)
        owner = store / "owner"
        if not owner.exists() or not (Path(owner.read_text()) / "cluster.json").exists():
            store.mkdir(parents=True, exist_ok=True)
            owner.write_text(str(state_dir))
            return store
    raise DevClusterError(f"100 image stores in {cache_dir() / 'containerd'} are in use: take clusters down")


def _members(init_pid: int | None) -> dict[int, int]:
    """Map the host's pid to the inner pid of each process in the namespace of `init_pid`, except those of pods."""
    members: dict[int, int] = {}
    if init_pid is None:
        return members
    try:
        namespace = Path(f"/proc/{init_pid}/ns/pid").readlink()
    except OSError:
        return members
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            lines = (directory / "status").read_text().splitlines()
            pids = next(line.split()[1:] for line in lines if line.startswith("NSpid:"))
            if len(pids) == 2 and (directory / "ns" / "pid").readlink() == namespace:
                members[int(pids[0])] = int(pids[1])
        except (OSError, StopIteration):
            continue
    return members


def _await_gone(init_pid: int | None) -> None:
    """Wait until the first process has ended, which the kernel allows only after all others of its namespace."""
    deadline = time.monotonic() + 30.0
    while init_pid is not None and processes.start_time(init_pid) is not None:
        if time.monotonic() > deadline:
            raise DevClusterError(
                f"the node's first process (pid {init_pid}) does not end; see the states of the namespace's processes"
            )
        time.sleep(0.02)


def _link_name(state_dir: Path) -> str:
    # An interface's name has at most 15 characters.
    return f"ft{hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]}"


def _host_dir(state_dir: Path) -> Path:
    return state_dir / "host"


def _use_sbin() -> None:
    """Add the directories of iptables and ip to PATH, which an ordinary shell may lack."""
    entries = os.environ.get("PATH", "").split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([*entries, *(path for path in ("/usr/sbin", "/sbin") if path not in entries)])
