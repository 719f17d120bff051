"""The corpus on a real API server: it and the operator accept what ``finetune validate`` accepts, and nothing else.

The API server reads YAML as kubectl does, and is asked directly: kubectl would take half a second for each file.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3
from pydantic import ValidationError

from devcluster.cluster import Cluster
from devcluster.errors import DevClusterError
from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.lenient import read_spec
from finetune_cli.cluster import connect
from finetune_cli.documents import check, read_documents
from finetune_operator.reconcile.finetunejob.model import Observed
from finetune_operator.reconcile.finetunejob.plan import make_plan
from tests.api.corpus_cases import BAD, GOOD, CorpusFile
from tests.operator.fake_cluster import NOW, SETTINGS

pytestmark = pytest.mark.cluster
KUBECTL_ONLY = {
    "an empty document before it": "kubectl takes the documents apart",
    "a document's begin and end": "kubectl takes the documents apart",
}
SERVER_ONLY = {
    "a field twice": "kubectl drops the first one before it sends the object",
    "a section twice": "kubectl drops the first one before it sends the object",
}


@dataclass(frozen=True)
class Answer:
    """What the API server says about a file, and what the operator would say then."""

    stored: dict[str, Any] | None
    message: str

    @property
    def accepted(self) -> bool:
        return self.stored is not None and not self.message


Send = Callable[[CorpusFile], Answer]


@pytest.fixture(scope="module")
def server(cluster_with_crds: Cluster) -> Cluster:
    """Return a control plane with both CRDs."""
    return cluster_with_crds


@pytest.fixture(scope="module")
def send(server: Cluster, monkeypatch_module: pytest.MonkeyPatch) -> Send:
    """Create an object without storing it."""
    monkeypatch_module.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(server.kubeconfig))
    api = connect(None, "default").api

    def post(case: CorpusFile) -> Answer:
        response: urllib3.BaseHTTPResponse = api.rest_client.pool_manager.request(
            "POST",
            f"{api.configuration.host}/apis/finetune-operator.io/v1alpha1/namespaces/default/{case.plural}"
            "?dryRun=All&fieldValidation=Strict",
            body=case.content,
            headers={
                "Content-Type": "application/json" if case.content.startswith(b"{") else "application/yaml",
                "Accept": "application/json",
                **{entry["key"]: entry["value"] for entry in api.configuration.auth_settings().values()},
            },
        )
        answer = json.loads(response.data)
        assert response.status in (201, 400, 422), answer
        if response.status != 201:
            return Answer(None, answer["message"])
        return Answer(answer, refused_by_the_operator(answer))

    return post


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def refused_by_the_operator(stored: dict[str, Any]) -> str:
    """Return the message of Accepted=False, or nothing."""
    if stored["kind"] == "FineTuneJob":
        conditions = make_plan(Observed(stored), NOW, SETTINGS).status["conditions"]
        (accepted,) = (item for item in conditions if item["type"] == "Accepted")
        return "" if accepted["status"] == "True" else str(accepted["message"])
    try:
        read_spec(AdapterDeploymentSpec, stored["spec"])
    except ValidationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("cases", [BAD, GOOD], ids=["wrong", "right"])
def test_the_server_the_operator_and_the_command_line_agree(
    send: Send, server: Cluster, tmp_path: Path, cases: list[CorpusFile]
) -> None:
    disagreements = {}
    for case in cases:
        file = tmp_path / "file.yaml"
        file.write_bytes(case.content)
        answer = send(case) if case.name not in KUBECTL_ONLY else Answer({}, ask_kubectl(server, file))
        if answer.accepted is not case.right:
            disagreements[case.name] = answer.message or "accepted"
        elif case.right and answer.stored:
            (document,) = read_documents(str(file))
            filled = check(document, str(file)).value["spec"]
            if filled != answer.stored["spec"]:
                disagreements[case.name] = f"stored as {answer.stored['spec']}, not as {filled}"
    assert disagreements == {}


@pytest.mark.parametrize("name", ["a model's name", "a tab", "yes", "an exponent without a dot", *SERVER_ONLY])
def test_kubectl_says_the_same(server: Cluster, tmp_path: Path, name: str) -> None:
    (case,) = (case for case in (*BAD, *GOOD) if case.name == name)
    file = tmp_path / "file.yaml"
    file.write_bytes(case.content)
    assert (ask_kubectl(server, file) == "") is (case.right or name in SERVER_ONLY)


def ask_kubectl(cluster: Cluster, file: Path) -> str:
    """Return what kubectl says about a file that is refused, or nothing."""
    try:
        cluster.kubectl("apply", "--dry-run=server", "-f", str(file))
    except DevClusterError as error:
        return str(error)
    return ""
