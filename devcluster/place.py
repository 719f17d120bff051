"""The cluster that the demo runs on, with its images: a dev cluster of this machine, or one that the user already has."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devcluster import cluster, images, serving
from devcluster.binaries import program
from devcluster.errors import DevClusterError
from devcluster.progress import step

ROOT = Path(__file__).parent.parent
DOCKERFILES = {
    "finetune-operator": ROOT / "operator" / "Dockerfile",
    "finetune-trainer": ROOT / "trainer_image" / "Dockerfile",
}
PACKAGES_AT = "/opt/vllm"


@dataclass(frozen=True)
class Images:
    """References of the images; None leaves the public one that the example names."""

    operator: str
    trainer: str
    s3: str | None = None
    engine: str | None = None
    engine_packages: Path | None = None
    """Directory of the node with vLLM's packages, mounted into the engine's container in place of an image of 6 GB."""


@dataclass(frozen=True)
class Place:
    """A cluster, reached as a user would: with kubectl, helm and finetune."""

    title: str
    images: Images
    options: tuple[str, ...] = ()
    """What kubectl is told to find the cluster."""
    variables: Mapping[str, str] = field(default_factory=dict)
    context: str | None = None

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it prints. Raises DevClusterError with its error output."""
        return self._run([str(program("kubectl")), *self.options, *arguments], stdin)

    def get(self, *arguments: str) -> dict[str, Any] | None:
        """Return an object as JSON, or None where there is none."""
        found = self.kubectl("get", *arguments, "--ignore-not-found", "--output=json")
        return dict(json.loads(found)) if found.strip() else None

    def helm(self, *arguments: str) -> str:
        """Run helm and return what it prints. Raises DevClusterError with its error output."""
        chosen = [f"--kube-context={self.context}"] if self.context else []
        return self._run([str(program("helm")), *chosen, *arguments])

    def finetune(self, *arguments: str) -> None:
        """Run our own command line on the user's terminal. Raises DevClusterError when it fails; it has said why by then."""
        chosen = [f"--context={self.context}"] if self.context else []
        command = [sys.executable, "-m", "finetune_cli.main", arguments[0], *chosen, *arguments[1:]]
        if subprocess.run(command, env={**os.environ, **self.variables}, check=False).returncode != 0:
            raise DevClusterError(f"finetune {' '.join(arguments)} failed")

    @contextmanager
    def forwarded(self, namespace: str, service: str, port: int) -> Iterator[str]:
        """Make a Service reachable for the block; yields its address on this machine, http://127.0.0.1:port."""
        command = [
            *(str(program("kubectl")), *self.options, "port-forward", f"--namespace={namespace}"),
            *(f"service/{service}", f":{port}"),
        ]
        environment = {**os.environ, **self.variables}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as forward:
            try:
                assert forward.stdout and forward.stderr
                found = re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", forward.stdout.readline())
                if found is None:
                    raise DevClusterError(f"`{' '.join(command)}` failed: {forward.stderr.read().strip()}")
                yield f"http://127.0.0.1:{found[1]}"
            finally:
                forward.terminate()

    def hint(self) -> str:
        """What the user types once so that kubectl, helm and finetune find this cluster."""
        return "\n".join(f"export {name}={value}" for name, value in self.variables.items())

    def _run(self, command: Sequence[str], stdin: str | None = None) -> str:
        finished = subprocess.run(
            command, input=stdin, capture_output=True, text=True, env={**os.environ, **self.variables}, check=False
        )
        if finished.returncode != 0:
            shown = " ".join([Path(command[0]).name, *command[1:]])
            raise DevClusterError(f"`{shown}` failed: {finished.stderr.strip() or finished.stdout.strip()}")
        return finished.stdout


def dev_place(name: str) -> Place:
    """Return the dev cluster `name` with a real node, brought up (or repaired) and with all images in its registry."""
    up = cluster.up(name, mode="node", gpus=2)
    assert up.registry
    base = images.base_image()
    built = {
        image: images.push(images.build(dockerfile, ROOT, image, {"UV_NO_CACHE": "0"}, base), up.registry)
        for image, dockerfile in DOCKERFILES.items()
    }
    return Place(
        title=f"dev cluster {name!r}",
        images=Images(
            operator=built["finetune-operator"],
            trainer=built["finetune-trainer"],
            s3=images.push(images.s3_server_image(), up.registry),
            engine=images.push(base, up.registry),
            engine_packages=serving.vllm_environment(),
        ),
        options=(f"--kubeconfig={up.kubeconfig}",),
        variables={"KUBECONFIG": str(up.kubeconfig)},
    )


def own_place(registry: str, context: str | None, engine: str | None, base: str | None) -> Place:
    """Return the cluster of the user's kubeconfig; our images are built with docker, podman or buildah and pushed to `registry`.

    `base` is another base image than the public one, `engine` another image of vLLM.
    """
    options = (f"--context={context}",) if context else ()
    title = f"context {context}" if context else "the cluster of your kubeconfig"
    reached = Place(title, Images("", ""), options=options, context=context)
    reached.kubectl("version")
    tool = next((found for found in ("docker", "podman", "buildah") if shutil.which(found)), None)
    if tool is None:
        raise DevClusterError("docker, podman or buildah is needed to build the images, and none is on PATH")
    tag = _sources_hash()
    built = {image: _build_and_push(tool, image, f"{registry}/{image}:{tag}", base) for image in DOCKERFILES}
    return Place(
        title,
        Images(built["finetune-operator"], built["finetune-trainer"], engine=engine),
        options=options,
        context=context,
    )


def reach_own_place(context: str | None) -> Place:
    """Return the user's cluster without any image, to take things out of it."""
    return Place("your cluster", Images("", ""), options=(f"--context={context}",) if context else (), context=context)


def _build_and_push(tool: str, image: str, reference: str, base: str | None) -> str:
    chosen = [f"--build-arg=BASE_IMAGE={base}"] if base else []
    with step(f"building {reference} with {tool}", "the trainer takes some minutes"):
        for command in (
            [tool, "build", *chosen, "--file", str(DOCKERFILES[image]), "--tag", reference, str(ROOT)],
            [tool, "push", reference],
        ):
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            if finished.returncode != 0:
                tail = "\n".join((finished.stdout + finished.stderr).splitlines()[-20:])
                raise DevClusterError(f"`{' '.join(command)}` failed:\n{tail}")
    return reference


def _sources_hash() -> str:
    """Return the hash of what the images are made from: the tag, so that a node never takes an old image for a new one."""
    digest = hashlib.sha256()
    sources = [ROOT / "pyproject.toml", ROOT / "uv.lock"]
    for tree in ("operator", "trainer_image"):
        sources += [file for file in sorted((ROOT / tree).rglob("*")) if file.is_file() and file.suffix != ".pyc"]
    for file in sources:
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
