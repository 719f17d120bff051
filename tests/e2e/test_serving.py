"""Adapters on the real vLLM: it refuses bad ones, never mixes versions, and a killed engine gives no wrong answer."""

from collections.abc import Iterator

import pytest
import yaml

from devcluster.cluster import Cluster
from devcluster.demo import ADAPTER, JOB, JOB_FILE
from tests.e2e import containers
from tests.e2e.adapters import BUCKET, adapter_deployment, with_higher_rank
from tests.e2e.conftest import Demo, Workshop, await_operator
from tests.e2e.engine import BASE, clients
from tests.e2e.jobs import prefix_of, succeeded
from tests.e2e.namespace import Namespace, Object, condition, is_ready
from tests.e2e.objectstore import demo_client

pytestmark = [pytest.mark.node, pytest.mark.timeout(3000)]
ENDPOINT = "http://s3:9000"
REFUSED = {
    "wrong-digest": ("DigestMismatch", "sha256"),
    "wrong-base": ("BaseModelMismatch", "base model"),
    "rank-too-high": ("RankTooHigh", "32"),
}
NO_DIGEST = "sha256:" + 64 * "0"
TOKENS = 24
"""Long enough that answers are being made when the name moves."""
SECOND = "shakespeare-2"
SERVED = "bard"


@pytest.fixture(scope="module")
def second_version(demo: Demo) -> Object:
    """Apply a job like the demo's, shorter and with another seed; it is awaited where it is needed."""
    item = yaml.safe_load(JOB_FILE.read_text())
    item["metadata"]["name"] = SECOND
    item["spec"]["training"] |= {"maxSteps": 3, "maxLength": 128, "learningRate": 0.003, "seed": 7}
    item["spec"]["evaluation"] = {"maxRows": 2}
    demo.namespace.apply(item)
    return demo.namespace.get("finetunejob", SECOND)


@pytest.fixture(scope="module")
def bad_adapters(
    demo: Demo, workshop: Workshop, undisturbed: Object, second_version: Object
) -> Iterator[dict[str, Object]]:
    """Three adapters that must not be served, each once a pod has refused it."""
    first = demo.namespace.get("finetunejob", JOB)
    tiny = undisturbed["status"]["adapter"]
    rank32 = f"{prefix_of(first)}-rank32/adapter"
    digest = with_higher_rank(demo_client(demo.namespace), f"{prefix_of(first)}/adapter", rank32, 32)
    demo.namespace.apply(
        adapter_deployment("wrong-digest", first["status"]["adapter"]["uri"], NO_DIGEST, ENDPOINT),
        adapter_deployment("wrong-base", tiny["uri"], tiny["digest"], workshop.store.address),
        adapter_deployment("rank-too-high", f"s3://{BUCKET}/{rank32}", digest, ENDPOINT),
    )
    try:
        yield {name: refused(demo.namespace, name) for name in REFUSED}
    finally:
        demo.namespace.kubectl("delete", "adapterdeployment", *REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_adapter_is_refused_with_the_reason(bad_adapters: dict[str, Object], name: str) -> None:
    reason, message_part = REFUSED[name]
    (pod,) = bad_adapters[name]["status"]["podStatus"]
    assert (pod["state"], pod["reason"]) == ("Refused", reason), pod["message"]
    assert message_part in pod["message"]
    ready = condition(bad_adapters[name], "Ready")
    assert (ready["status"], ready["reason"]) == ("False", reason)


def test_base_and_good_adapter_continue_beside_bad_ones(bad_adapters: dict[str, Object], demo: Demo) -> None:
    assert set(demo.engine.models()) == {BASE, ADAPTER}
    assert demo.engine.answer(ADAPTER) != demo.engine.answer(BASE)
    assert is_ready(vllm_pod(demo.namespace))
    assert condition(demo.namespace.get("adapterdeployment", ADAPTER), "Ready")["status"] == "True"


def test_no_answer_mixes_two_versions(demo: Demo, second_version: Object) -> None:
    namespace, engine = demo.namespace, demo.engine
    first = namespace.get("finetunejob", JOB)["status"]["adapter"]
    second = succeeded(namespace, SECOND)["status"]["adapter"]
    namespace.apply(adapter_deployment(SERVED, first["uri"], first["digest"], ENDPOINT))
    try:
        await_active(namespace, SERVED, first["digest"])
        pod = vllm_pod(namespace)["metadata"]["uid"]
        before = engine.answer(SERVED, tokens=TOKENS)
        with clients(engine, SERVED, number=3, tokens=TOKENS) as client_answers:
            namespace.until("answers of the first version", lambda: len(client_answers.whole) >= 3, 120)
            namespace.apply(adapter_deployment(SERVED, second["uri"], second["digest"], ENDPOINT))
            await_active(namespace, SERVED, second["digest"])
            answers_before = len(client_answers.whole)
            namespace.until(
                "answers of the second version", lambda: len(client_answers.whole) >= answers_before + 6, 180
            )
        after = engine.answer(SERVED, tokens=TOKENS)
        assert before != after
        assert set(client_answers.whole) == {before, after}
        assert client_answers.cut_off == []
        # With one pod there is a moment in which the name is not there; nothing else may go wrong.
        assert {answer.status for answer in client_answers.answers} <= {200, 404, 0}
        assert vllm_pod(namespace)["metadata"]["uid"] == pod
    finally:
        namespace.kubectl("delete", "adapterdeployment", SERVED)


@pytest.mark.parametrize(
    "operator", [pytest.param("the operator running", marks=pytest.mark.exhaustive), "the operator away"]
)
def test_a_killed_engine_takes_traffic_only_with_its_adapter_proven(
    demo: Demo, dev_node: Cluster, operator: str
) -> None:
    namespace, engine = demo.namespace, demo.engine
    expected = engine.answer(ADAPTER)
    pod = vllm_pod(namespace)
    killed = containers.container_id(pod, "vllm")
    if operator == "the operator away":
        scale_operator(demo, 0)
    try:
        with clients(engine, ADAPTER, number=1, tokens=24) as client_answers:
            namespace.until("answers", lambda: client_answers.whole, 60)
            containers.kill(dev_node, pod, "vllm")
            namespace.until("the pod is not Ready", lambda: not is_ready(vllm_pod(namespace)), 60, pause=0.1)
            answers_before = len(client_answers.whole)
            namespace.until("the pod is Ready again", lambda: is_ready(vllm_pod(namespace)), 300)
            namespace.until("answers again", lambda: len(client_answers.whole) >= answers_before + 3, 120)
        assert containers.container_id(vllm_pod(namespace), "vllm") != killed
        # 404 would be a pod that takes traffic without its adapter, another text a base that answers in its place.
        assert {answer.status for answer in client_answers.answers} == {0, 200}
        assert set(client_answers.whole) == {expected}
    finally:
        if operator == "the operator away":
            scale_operator(demo, 1)
    namespace.await_condition("adapterdeployment", ADAPTER, "Ready", "True", 120)


def refused(namespace: Namespace, name: str) -> Object:
    """Wait until the pod has refused the AdapterDeployment, and return it."""

    def ask() -> Object | None:
        item = namespace.get("adapterdeployment", name)
        return item if [pod["state"] for pod in item["status"].get("podStatus", [])] == ["Refused"] else None

    return namespace.until(f"AdapterDeployment {name} is refused", ask, 240)


def await_active(namespace: Namespace, name: str, digest: str) -> None:
    """Wait until every pod serves this version."""

    def ask() -> bool:
        status = namespace.get("adapterdeployment", name)["status"]
        return bool(
            status.get("active", {}).get("digest") == digest
            and condition({"status": status}, "Ready")["status"] == "True"
        )

    namespace.until(f"AdapterDeployment {name} serves {digest}", ask, 240)


def vllm_pod(namespace: Namespace) -> Object:
    """Return the one pod of the inference Deployment."""
    (pod,) = [
        candidate
        for candidate in namespace.all("pods", "app=vllm")
        if not candidate["metadata"].get("deletionTimestamp")
    ]
    return pod


def scale_operator(demo: Demo, replicas: int) -> None:
    """Take the operator away, or bring it back."""
    demo.system.kubectl("scale", "deployment/finetune-operator", f"--replicas={replicas}")
    if replicas:
        await_operator(demo.system)
    else:
        demo.system.until("the operator is gone", lambda: not demo.system.all("pods"), 60)
