"""Find the cluster that the demo runs on (a dev cluster or the user's own), and make its images."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devcluster import binaries, cluster, commands, corpus, images, model, node, serving
from devcluster.binaries import program
from devcluster.errors import DevClusterError
from devcluster.paths import REPOSITORY
from devcluster.progress import step
from devcluster.taskgroup import TaskGroup

DOCKERFILE = REPOSITORY / "Dockerfile"
IMAGES = {"finetune-operator": "operator", "finetune-trainer": "trainer"}
"""The name of each image, and the stage of the Dockerfile that makes it."""
PROGRAMS = (*cluster.CONTROL_PLANE_PROGRAMS, *node.PROGRAMS, "helm", "versitygw")
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
class ClusterTarget:
    """A cluster, reached as a user would: with kubectl, helm and finetune."""

    title: str
    images: Images
    options: tuple[str, ...] = ()
    """Options by which kubectl finds the cluster."""
    variables: Mapping[str, str] = field(default_factory=dict)
    context: str | None = None
    simulated_gpus: bool = False
    """Whether its nodes only pretend to have GPUs."""

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it prints. Raises DevClusterError with its error output."""
        return self._run([str(program("kubectl")), *self.options, *arguments], stdin)

    def get(self, *arguments: str) -> dict[str, Any] | None:
        """Return an object as JSON, or None where there is none."""
        output = self.kubectl("get", *arguments, "--ignore-not-found", "--output=json")
        return dict(json.loads(output)) if output.strip() else None

    def helm(self, *arguments: str) -> str:
        """Run helm and return what it prints. Raises DevClusterError with its error output."""
        context = [f"--kube-context={self.context}"] if self.context else []
        return self._run([str(program("helm")), *context, *arguments])

    def finetune(self, *arguments: str) -> None:
        """Run `finetune` on the user's terminal. Raises DevClusterError if it fails; it has printed the reason."""
        context = [f"--context={self.context}"] if self.context else []
        command = [sys.executable, "-m", "finetune_cli.main", arguments[0], *context, *arguments[1:]]
        if subprocess.run(command, env={**os.environ, **self.variables}, check=False).returncode != 0:
            raise DevClusterError(f"finetune {' '.join(arguments)} failed")

    @contextmanager
    def forwarded(self, namespace: str, service: str, port: int) -> Iterator[str]:
        """Forward a port of a Service within the block; yield its local address, http://127.0.0.1:port."""
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
                match = re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", forward.stdout.readline())
                if match is None:
                    raise DevClusterError(f"`{' '.join(command)}` failed: {forward.stderr.read().strip()}")
                yield f"http://127.0.0.1:{match[1]}"
            finally:
                forward.terminate()

    def hint(self) -> str:
        """Return the shell command that sets PATH and KUBECONFIG for kubectl, helm and finetune."""
        directories = dict.fromkeys(
            [str(Path(sys.executable).parent), *(str(program(name).parent) for name in ("kubectl", "helm"))]
        )
        path = ":".join([*directories, "$PATH"])
        variables = [f"export {name}={value}" for name, value in self.variables.items()]
        return "\n".join([*variables, f'export PATH="{path}"'])

    def _run(self, command: Sequence[str], stdin: str | None = None) -> str:
        completed = subprocess.run(
            command, input=stdin, capture_output=True, text=True, env={**os.environ, **self.variables}, check=False
        )
        if completed.returncode != 0:
            command_line = " ".join([Path(command[0]).name, *command[1:]])
            raise DevClusterError(f"`{command_line}` failed: {completed.stderr.strip() or completed.stdout.strip()}")
        return completed.stdout


def dev_target(name: str) -> ClusterTarget:
    """Bring up the dev cluster `name` with a real node, push all images to its registry, and return it.

    Independent steps run side by side: Go compiles while packages are downloaded and images are built.
    """
    with TaskGroup() as group:
        machine = group.start("Debian packages", node.check_machine)
        programs = group.start("Kubernetes, helm and S3 server", lambda: binaries.ensure(PROGRAMS))
        engine = group.start("vLLM", serving.vllm_environment)
        group.start("model", model.smollm2)
        group.start("texts", corpus.shakespeare)
        base = group.start("base image", images.base_image, [machine])
        # One after the other: the second finds the stages that both share.
        operator = group.start("operator image", lambda: build_image("finetune-operator", base.result()), [base])
        trainer = group.start("trainer image", lambda: build_image("finetune-trainer", base.result()), [base, operator])
        s3_server = group.start("S3 server image", images.s3_server_image, [machine, programs])
        up = group.start("cluster", lambda: cluster.up(name, mode="node", gpus=2), [machine, programs])

        def push(title: str, image: Future[str]) -> Future[str]:
            return group.start(
                f"push of the {title}", lambda: images.push(image.result(), _registry(up.result())), [image, up]
            )

        pushed_operator, pushed_trainer = push("operator image", operator), push("trainer image", trainer)
        pushed_s3_server, pushed_base = push("S3 server image", s3_server), push("base image", base)
    kubeconfig = up.result().kubeconfig
    return ClusterTarget(
        title=f"dev cluster {name!r}",
        images=Images(
            operator=pushed_operator.result(),
            trainer=pushed_trainer.result(),
            s3=pushed_s3_server.result(),
            engine=pushed_base.result(),
            engine_packages=engine.result(),
        ),
        options=(f"--kubeconfig={kubeconfig}",),
        variables={"KUBECONFIG": str(kubeconfig)},
        simulated_gpus=True,
    )


def own_target(registry: str, context: str | None, engine: str | None, base: str | None) -> ClusterTarget:
    """Return the cluster of the user's kubeconfig, with our images built and pushed to `registry`.

    Args:
        registry: Where the cluster pulls images from.
        context: The context of the kubeconfig; by default the current one.
        engine: Another image of vLLM than the public one.
        base: Another base image than the public one.

    Raises:
        DevClusterError: The cluster does not answer, or docker, podman and buildah are all missing, or a build failed.
    """
    binaries.ensure(("kubectl", "helm"))
    options = (f"--context={context}",) if context else ()
    title = f"context {context}" if context else "the cluster of your kubeconfig"
    target = ClusterTarget(title, Images("", ""), options=options, context=context)
    target.kubectl("version")
    tool = next((name for name in ("docker", "podman", "buildah") if shutil.which(name)), None)
    if tool is None:
        raise DevClusterError("docker, podman or buildah is needed to build the images, and none is on PATH")
    tag = _sources_hash()
    references = {image: _build_and_push(tool, image, f"{registry}/{image}:{tag}", base) for image in IMAGES}
    return ClusterTarget(
        title,
        Images(references["finetune-operator"], references["finetune-trainer"], engine=engine),
        options=options,
        context=context,
    )


def reach_own_target(context: str | None) -> ClusterTarget:
    """Return the user's cluster without images, to remove the demo from it."""
    options = (f"--context={context}",) if context else ()
    return ClusterTarget("your cluster", Images("", ""), options=options, context=context)


def build_image(image: str, base: str, tag: str | None = None) -> str:
    """Build one of our images with buildah on a local base image and return its local name.

    Args:
        image: One of IMAGES.
        base: The base image.
        tag: Another name than the image's own.
    """
    return images.build(DOCKERFILE, REPOSITORY, tag or image, {"UV_NO_CACHE": "0"}, base, IMAGES[image])


def _registry(dev_cluster: cluster.Cluster) -> str:
    assert dev_cluster.registry, "a cluster of mode node has a registry"
    return dev_cluster.registry


def _build_and_push(tool: str, image: str, reference: str, base: str | None) -> str:
    build_args = [f"--build-arg=BASE_IMAGE={base}"] if base else []
    source = ["--file", str(DOCKERFILE), "--target", IMAGES[image], "--tag", reference, str(REPOSITORY)]
    with step(f"building {reference} with {tool}", "the trainer takes some minutes"):
        commands.run([tool, "build", *build_args, *source])
        commands.run([tool, "push", reference])
    return reference


def _sources_hash() -> str:
    """Return the hash of the images' sources. It is their tag, so that a node never runs an old image."""
    digest = hashlib.sha256()
    sources = [DOCKERFILE, REPOSITORY / "pyproject.toml", REPOSITORY / "uv.lock"]
    for tree in ("operator", "trainer_image"):
        sources += [file for file in sorted((REPOSITORY / tree).rglob("*")) if file.is_file() and file.suffix != ".pyc"]
    for file in sources:
        digest.update(str(file.relative_to(REPOSITORY)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
