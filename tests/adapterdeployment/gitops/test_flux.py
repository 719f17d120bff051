"""Flux rolls adapters out from Git: its real source-controller and kustomize-controller, on a real API server."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from devcluster import binaries
from tests.adapterdeployment.gitops.repository import Repository
from tests.adapterdeployment.gitops.story import live
from tests.adapterdeployment.serving import ServingNamespace
from tools.testing.crds import apply_crds
from tools.testing.process import running
from tools.testing.waiting import free_port, until

pytestmark = [pytest.mark.cluster]
KUSTOMIZATION = "kustomizations.kustomize.toolkit.fluxcd.io"


class Flux:
    """The GitRepository and the Kustomization ``models``."""

    def __init__(self, serving: ServingNamespace, url: str, log: Path) -> None:
        """Create both; ``log`` is that of kustomize-controller."""
        self._serving, self._log = serving, log
        self._revision = ""
        source = {
            "apiVersion": "source.toolkit.fluxcd.io/v1",
            "kind": "GitRepository",
            "metadata": {"name": "models"},
            "spec": {"url": url, "ref": {"branch": "main"}, "interval": "1s"},
        }
        kustomization = {
            "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
            "kind": "Kustomization",
            "metadata": {"name": "models"},
            "spec": {
                "sourceRef": {"kind": "GitRepository", "name": "models"},
                "path": "./",
                "targetNamespace": serving.namespace,
                "interval": "2s",
                "retryInterval": "2s",
                "timeout": "5m",
                "wait": True,
                "prune": True,
            },
        }
        for resource in (source, kustomization):
            serving.kubectl("apply", "-f", "-", stdin=resource)

    def _applications(self) -> list[dict[str, str]]:
        """Return what each application of the commit did to each object, by the log of kustomize-controller."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if "apply completed" in line]
        return [line["output"] for line in lines if line["revision"].endswith(self._revision)]

    def _read(self) -> tuple[str, str]:
        """Return what Flux thinks of the commit: the health, and its words."""
        text = self._serving.kubectl("get", KUSTOMIZATION, "models", "-o", "json")
        status = json.loads(text).get("status", {})
        conditions = {item["type"]: item for item in status.get("conditions", [])}
        unknown = {"status": "Unknown", "message": ""}
        ready, healthy = conditions.get("Ready", unknown), conditions.get("Healthy", unknown)
        if ready["status"] == "False" and status["lastAttemptedRevision"].endswith(self._revision):
            return "Failed", ready["message"]
        if ready["status"] == "True" and self._revision in ready["message"]:
            return "Healthy", ready["message"]
        is_looking = healthy["status"] == "Unknown" and self._revision in healthy["message"]
        return "Progressing" if is_looking else "of another commit", healthy["message"]

    def await_applied(self, revision: str) -> None:
        """Wait until Flux has applied the commit."""
        self._revision = revision
        until("it is applied", self._applications)

    def await_health(self, health: str) -> str:
        """Wait until Flux calls the commit so; return its words."""

        def ask() -> str | None:
            found, words = self._read()
            return words if found == health else None

        return until(health, ask)

    def await_comparison(self) -> None:
        """Wait until Flux has applied the commit once more, which must change nothing."""
        before = len(self._applications())
        until("another application", lambda: len(self._applications()) > before)
        assert set(self._applications()[-1].values()) == {"unchanged"}


@pytest.fixture
def flux(serving: ServingNamespace, tmp_path: Path) -> Iterator[tuple[Flux, Repository]]:
    """Run both controllers for the namespace, on a repository."""
    programs = [binaries.program(name) for name in ("source-controller", "kustomize-controller")]
    modules = [binaries.download_module(module) for module in (binaries.FLUX_SOURCE, binaries.FLUX_KUSTOMIZE)]
    files = [file for module in modules for file in sorted((module / "config" / "crd" / "bases").glob("*.yaml"))]
    apply_crds(serving.cluster, files)
    storage = f"127.0.0.1:{free_port()}"
    environment = {"KUBECONFIG": str(serving.cluster.kubeconfig), "RUNTIME_NAMESPACE": serving.namespace}
    repository = Repository(tmp_path)
    with ExitStack() as stack:
        url = stack.enter_context(repository.served())
        for program in programs:
            command = [
                str(program), "--watch-all-namespaces=false", "--requeue-dependency=1s",
                f"--metrics-addr=127.0.0.1:{free_port()}", f"--health-addr=127.0.0.1:{free_port()}",
            ]  # fmt: skip
            if program.name == "source-controller":
                command += [f"--storage-path={tmp_path}", f"--storage-addr={storage}", f"--storage-adv-addr={storage}"]
            stack.enter_context(running(command, tmp_path / f"{program.name}.log", environment))
        yield Flux(serving, url, tmp_path / "kustomize-controller.log"), repository


@pytest.mark.exhaustive
@pytest.mark.timeout(2400)  # Go builds both controllers the first time
def test_flux_rolls_out_sends_back_and_reverts_without_drift(
    serving: ServingNamespace, flux: tuple[Flux, Repository]
) -> None:
    tool, repository = flux
    live(serving, repository, tool)
