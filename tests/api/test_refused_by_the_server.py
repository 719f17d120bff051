"""The CRDs on a real API server: what `kubectl apply` refuses, in which words, and the defaults of what it accepts."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from devcluster.cluster import Cluster
from devcluster.errors import DevClusterError
from finetune_api.base import Model
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.finetunejob.editable import EDITABLE
from tests.api.case import Case
from tests.api.cases import every_case
from tests.api.change_cases import Change, every_change
from tests.api.objects import ADAPTER_DEPLOYMENT, FINETUNE_JOB, Object, changed

pytestmark = pytest.mark.cluster
ITEMS = pytest.mark.parametrize("item", [FINETUNE_JOB, ADAPTER_DEPLOYMENT], ids=lambda item: str(item["kind"]))


@pytest.fixture(scope="module")
def cluster(cluster_with_crds: Cluster) -> Cluster:
    """Return a control plane with both CRDs."""
    return cluster_with_crds


@contextmanager
def new_namespace(cluster: Cluster) -> Iterator[str]:
    """Make a namespace for the block."""
    name = f"api-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """Yield a namespace of the test's own."""
    with new_namespace(cluster) as name:
        yield name


def apply(cluster: Cluster, item: Object, *options: str) -> str:
    return cluster.kubectl("apply", "-f", "-", *options, stdin=yaml.safe_dump(item))


def refusal(cluster: Cluster, item: Object) -> str:
    """Return what kubectl prints about an object that is refused."""
    with pytest.raises(DevClusterError) as refused:
        apply(cluster, item, "--dry-run=server")
    return str(refused.value)


@ITEMS
def test_a_whole_object_is_accepted(cluster: Cluster, namespace: str, item: Object) -> None:
    assert "created (server dry run)" in apply(
        cluster, changed(item, {"metadata.namespace": namespace}), "--dry-run=server"
    )


@every_case
def test_a_wrong_object_is_refused_with_field_and_reason(cluster: Cluster, case: Case) -> None:
    message = refusal(cluster, case.wrong)
    assert case.server in message
    assert case.field in message


@pytest.fixture(scope="module")
def stored(cluster: Cluster) -> Iterator[str]:
    """Yield a namespace with both objects."""
    with new_namespace(cluster) as name:
        for item in (FINETUNE_JOB, ADAPTER_DEPLOYMENT):
            apply(cluster, changed(item, {"metadata.namespace": name}))
        yield name


@every_change
def test_what_is_pinned_cannot_be_changed(cluster: Cluster, stored: str, change: Change) -> None:
    item = changed(change.item, {"metadata.namespace": stored})
    assert change.message in refusal(cluster, changed(item, change.changes))


EDITS = {
    "suspend": True,
    "activeDeadlineSeconds": 3600,
    "pendingDeadlineSeconds": 3600,
    "ttlSecondsAfterFinished": 60,
    "failurePolicy.retries.onError": 5,
    "failurePolicy.outOfMemory.quantize": True,
    "output.deletionPolicy": "Delete",
    "resources.merge": {"requests": {"memory": "8Gi"}},
}


def test_what_is_not_pinned_can_be_changed(cluster: Cluster, namespace: str) -> None:
    item = changed(FINETUNE_JOB, {"metadata.namespace": namespace})
    apply(cluster, item)
    edits = {f"spec.{path}": value for path, value in EDITS.items() if is_field(FineTuneJobSpec, path)}
    assert len(edits) >= 3
    stored = json.loads(apply(cluster, changed(item, edits), "-o", "json"))
    assert changed(stored, edits) == stored, "each edit is stored"
    assert {next(path for path in EDITABLE if edit.startswith(path)) for edit in EDITS} == EDITABLE


def is_field(model: type[Model], path: str) -> bool:
    """Tell whether the model has a field at this path."""
    first, _, rest = path.partition(".")
    fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    return first in fields and (not rest or is_field(fields[first], rest))  # type: ignore[arg-type]


def test_a_name_that_children_could_not_carry_is_refused(cluster: Cluster, namespace: str) -> None:
    item = changed(FINETUNE_JOB, {"metadata.namespace": namespace, "metadata.name": "a" * 201})
    assert "at most 200 characters" in refusal(cluster, item)


def test_a_spec_without_a_method_trains_a_lora(cluster: Cluster, namespace: str) -> None:
    item = changed(FINETUNE_JOB, {"metadata.namespace": namespace})
    del item["spec"]["method"]
    stored = json.loads(apply(cluster, item, "-o", "json"))
    assert stored["spec"]["method"]["lora"]["rank"] == 16
    assert stored["spec"]["method"]["lora"]["targetModules"] == "auto"


@ITEMS
def test_an_object_looks_unready_before_the_operator_saw_it(cluster: Cluster, namespace: str, item: Object) -> None:
    stored = json.loads(apply(cluster, changed(item, {"metadata.namespace": namespace}), "-o", "json"))
    (condition,) = stored["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("Ready", "Unknown")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("finetunejob.spec.training.maxSteps", "Number of optimizer steps, instead of epochs."),
        ("ftj.spec.method.qlora.quantization.type", "Data type of the weights"),
        ("adp.spec.strategy.maxUnavailable", "Maximum number of pods that may be out of the Service at once"),
        ("adp.status.podStatus.state", "Pending, Downloading, Loading"),
    ],
)
def test_kubectl_explain_has_a_sentence(cluster: Cluster, path: str, sentence: str) -> None:
    assert sentence in " ".join(cluster.kubectl("explain", path).split())


def test_the_columns_show_progress(cluster: Cluster, namespace: str) -> None:
    apply(cluster, changed(FINETUNE_JOB, {"metadata.namespace": namespace}))
    status = {
        "phase": "Training",
        "progress": {
            "step": 7,
            "totalSteps": 10,
            "percent": 70,
            "loss": 3.25,
            "etaSeconds": 12,
            "updatedAt": "2026-01-01T00:00:00Z",
        },
    }
    cluster.kubectl(
        "-n",
        namespace,
        "patch",
        "ftj",
        "shakespeare",
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )
    header, row = cluster.kubectl("-n", namespace, "get", "ftj").splitlines()
    assert header.split() == ["NAME", "PHASE", "STEP", "PERCENT", "LOSS", "ETA", "READY", "REASON", "AGE"]
    assert row.split()[:7] == ["shakespeare", "Training", "7", "70", "3.25", "12", "Unknown"]


def test_the_columns_show_how_far_a_roll_out_is(cluster: Cluster, namespace: str) -> None:
    apply(cluster, changed(ADAPTER_DEPLOYMENT, {"metadata.namespace": namespace}))
    status = json.dumps({"status": {"target": "vllm", "pods": {"total": 3, "updated": 2, "ready": 3}}})
    cluster.kubectl(
        "-n", namespace, "patch", "adp", "shakespeare", "--subresource=status", "--type=merge", "-p", status
    )
    row = cluster.kubectl("-n", namespace, "get", "adp", "--no-headers").split()
    assert row[:6] == ["shakespeare", "shakespeare", "vllm", "2", "3", "Unknown"]


def test_both_kinds_are_found_by_their_category(cluster: Cluster, namespace: str) -> None:
    for item in (FINETUNE_JOB, ADAPTER_DEPLOYMENT):
        apply(cluster, changed(item, {"metadata.namespace": namespace}))
    listed = cluster.kubectl("-n", namespace, "get", "finetune", "-o", "name").split()
    assert sorted(listed) == [
        "adapterdeployment.finetune-operator.io/shakespeare",
        "finetunejob.finetune-operator.io/shakespeare",
    ]
