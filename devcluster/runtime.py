"""Prepare the inside of a node's namespaces, and run containerd and the image registry there."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

from devcluster import cgroups, nodeconfig, processes
from devcluster.api import http_problem
from devcluster.binaries import program
from devcluster.errors import DevClusterError
from devcluster.node import REGISTRY_PORT, registry_program
from devcluster.processes import Daemon
from devcluster.settings import Settings

PREPARED = Path("/run/devcluster-prepared")

# The kubelet sets these for the whole machine. Files with the expected values are mounted over them instead.
SHOWN_TO_KUBELET = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
NODE_SYSCTLS = {"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"}


def prepare_namespace(settings: Settings) -> None:
    """Give the node its own /run, logs, network settings and control group, if the namespaces are new."""
    if PREPARED.exists():
        return
    # The kubelet waits for containers whose control groups exist; those of earlier namespaces would never come.
    cgroups.remove(cgroups.name(settings.state_dir))
    cgroups.make(cgroups.name(settings.state_dir))
    _run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
    _run(["mount", "--make-rshared", "/"])
    # CNI keeps what it did for each pod here; it must end with the pods, and so with the namespaces.
    Path("/var/lib/cni").mkdir(parents=True, exist_ok=True)
    _run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/lib/cni"])
    for source, target in (
        (settings.state_dir / "kubelet", Path(nodeconfig.KUBELET_ROOT)),
        (settings.state_dir / "node-logs", Path("/var/log")),
    ):
        source.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        _run(["mount", "--bind", str(source), str(target)])
    directory = Path("/run/devcluster-sysctls")
    directory.mkdir()
    for name, value in SHOWN_TO_KUBELET.items():
        file = directory / name.replace("/", ".")
        file.write_text(value + "\n")
        if Path("/proc/sys", name).exists():
            _run(["mount", "--bind", str(file), f"/proc/sys/{name}"])
    if not Path("/proc/sys/net/bridge").exists():
        subprocess.run(["modprobe", "br_netfilter"], capture_output=True, check=False)
    for name, value in NODE_SYSCTLS.items():
        file = Path("/proc/sys") / name
        if not file.exists():
            raise DevClusterError(
                f"this kernel has no {file}, without which Services cannot reach pods: load the module br_netfilter"
            )
        file.write_text(value)
    PREPARED.touch()


def bring_up(settings: Settings) -> None:
    """Start the registry and containerd, with the sandbox image and no containers of an earlier cluster."""
    processes.ensure(settings.state_dir, [registry(settings)])
    emptied = settings.state_dir / "image-store-emptied"
    if not emptied.exists():
        _remove_containers(settings)
        emptied.touch()
    processes.ensure(settings.state_dir, [containerd(settings)])
    _import_pause_image(settings)


def registry(settings: Settings) -> Daemon:
    """Return the image registry's process."""
    return Daemon(
        "registry",
        [str(registry_program()), "serve", str(settings.state_dir / "registry.yaml")],
        lambda: http_problem(f"http://127.0.0.1:{REGISTRY_PORT}/v2/"),
        environment={"OTEL_TRACES_EXPORTER": "none"},
        configuration=nodeconfig.registry(),
    )


def containerd(settings: Settings) -> Daemon:
    """Return containerd's process."""
    return Daemon(
        "containerd",
        ["containerd", f"--config={settings.state_dir / 'containerd.toml'}"],
        lambda: _containerd_problem() or _cri_problem(processes.log_file(settings.state_dir, "containerd")),
        configuration=nodeconfig.containerd(settings),
    )


def _containerd_problem() -> str | None:
    completed = subprocess.run(
        ["ctr", f"--address={nodeconfig.CONTAINERD_SOCKET}", "version"], capture_output=True, text=True, check=False
    )
    return None if completed.returncode == 0 else completed.stderr.strip()


def _cri_problem(log: Path) -> str | None:
    """Return a problem until the log shows that containerd's CRI server is up; a kubelet exits without it."""
    since_start = log.read_text(errors="replace").rpartition('msg="starting containerd"')[2]
    return None if 'msg="Start streaming server"' in since_start else "its CRI server is not initialized yet"


def _remove_containers(settings: Settings) -> None:
    """Remove containers of an earlier cluster from the image store, before the CRI part adopts them."""
    without_cri = settings.state_dir / "containerd-without-cri.toml"
    plain = nodeconfig.containerd(settings)
    without_cri.write_text(
        plain.replace("disabled_plugins = [", 'disabled_plugins = ["io.containerd.grpc.v1.cri", ', 1)
    )
    cleaner = Daemon("containerd", ["containerd", f"--config={without_cri}"], _containerd_problem)
    processes.ensure(settings.state_dir, [cleaner])
    container_ids = _ctr("containers", "list", "--quiet").split()
    if container_ids:
        _ctr("containers", "delete", *container_ids)
    processes.stop(settings.state_dir, "containerd")


def _import_pause_image(settings: Settings) -> None:
    if nodeconfig.pause_image() in _ctr("images", "list", "--quiet").split():
        return
    archive = settings.state_dir / "pause.tar"
    write_scratch_image(archive, program("pause"), nodeconfig.pause_image())
    _ctr("images", "import", str(archive))
    archive.unlink()


def write_scratch_image(archive: Path, binary: Path, reference: str) -> None:
    """Write an image in the layout of `docker save` that contains nothing but one static program.

    Args:
        archive: The tar file to write.
        binary: The program.
        reference: The image's name.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        entry = tarfile.TarInfo(binary.name)
        entry.mode, entry.size = 0o755, binary.stat().st_size
        with binary.open("rb") as content:
            files.addfile(entry, content)
    layer_digest = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {"Entrypoint": [f"/{binary.name}"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, mode="w") as image:
        for name, content_bytes in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content_bytes)
            image.addfile(entry, io.BytesIO(content_bytes))


def _ctr(*arguments: str) -> str:
    return _run(["ctr", f"--address={nodeconfig.CONTAINERD_SOCKET}", "--namespace=k8s.io", *arguments])


def _run(command: list[str]) -> str:
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        raise DevClusterError(f"`{' '.join(command)}` failed inside the node: {completed.stderr.strip()}")
    return completed.stdout
