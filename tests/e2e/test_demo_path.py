"""What a new user sees who types `make demo`: from one YAML to a tuned adapter that answers in vLLM."""

import hashlib
import json
import re
from typing import Any

import pytest

from devcluster.demo import ADAPTER, JOB
from tests.e2e.conftest import Demo, run_demo
from tests.e2e.engine import BASE
from tests.e2e.jobs import prefix_of
from tests.e2e.namespace import Object, condition, conditions, gpus, is_ready
from tests.e2e.objectstore import demo_client

pytestmark = [pytest.mark.node, pytest.mark.timeout(3000)]
BUCKET = "adapters"


@pytest.fixture(scope="module")
def finished(demo: Demo) -> Object:
    """Return the demo's FineTuneJob."""
    return demo.namespace.get("finetunejob", JOB)


def test_the_demo_shows_the_loss_before_and_after_and_both_answers(demo: Demo) -> None:
    assert "Held-out loss on Hamlet" in demo.output
    assert f"{BASE} (base)" in demo.output
    assert "shakespeare (adapter)" in demo.output


def test_the_job_went_through_every_stage_and_ended_well(finished: Object) -> None:
    assert conditions(finished) == {
        "Accepted": "True",
        "PreflightPassed": "True",
        "Running": "False",
        "Evaluated": "True",
        "Succeeded": "True",
        "Ready": "True",
    }
    assert finished["status"]["phase"] == "Succeeded"
    assert [attempt["reason"] for attempt in finished["status"]["attempts"]] == ["Succeeded"]


def test_progress_was_seen_moving(demo: Demo) -> None:
    reported = [item["status"]["progress"] for item in demo.jobs.of(JOB) if "progress" in item.get("status", {})]
    steps = [progress["step"] for progress in reported]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 3
    assert {progress["totalSteps"] for progress in reported} == {15}
    assert reported[-1]["percent"] == 100
    # The first step's loss is told a moment after the step.
    moving = [progress for progress in reported if 0 < progress["step"] < 15 and "loss" in progress]
    assert len({progress["step"] for progress in moving}) >= 3
    assert all(progress["loss"] > 0 and progress["tokensPerSecond"] > 0 for progress in moving)
    assert moving[0]["etaSeconds"] > moving[-1]["etaSeconds"]


def test_the_adapter_in_s3_is_what_its_manifest_says(demo: Demo, finished: Object) -> None:
    adapter = finished["status"]["adapter"]
    assert adapter["uri"] == f"s3://{BUCKET}/{prefix_of(finished)}/adapter"
    content = read(demo, f"{prefix_of(finished)}/adapter/manifest.json")
    assert sha256(content) == adapter["digest"]
    files = {entry["path"]: entry["sha256"] for entry in json.loads(content)["files"]}
    assert {"adapter_config.json", "adapter_model.safetensors", "golden.json"} <= files.keys()
    assert {path: sha256(read(demo, f"{prefix_of(finished)}/adapter/{path}")) for path in files} == files


def test_a_checkpoint_was_saved_and_its_address_told_while_the_job_ran(demo: Demo) -> None:
    checkpoints = [
        item["status"]["checkpoint"] for item in demo.jobs.of(JOB) if item.get("status", {}).get("checkpoint")
    ]
    assert checkpoints
    assert all(
        re.search(rf"/checkpoints/run-[0-9a-f]{{12}}/step-{checkpoint['step']:08d}$", checkpoint["uri"])
        for checkpoint in checkpoints
    )


def test_the_held_out_loss_is_lower_afterwards(finished: Object) -> None:
    evaluation = finished["status"]["evaluation"]
    assert evaluation["loss"] < evaluation["baseLoss"] - 0.1
    assert evaluation["improvementPercent"] > 2


def test_only_the_trainer_asked_for_a_gpu(demo: Demo) -> None:
    pods = demo.pods.pods_of(JOB)
    by_role = {pod["metadata"]["labels"]["finetune-operator.io/role"]: gpus(pod) for pod in pods.values()}
    assert by_role == {"preflight": 0, "trainer": 1}
    assert len(pods) == 2


def test_the_adapter_is_served_by_a_pod_that_takes_traffic(demo: Demo, finished: Object) -> None:
    item = demo.namespace.get("adapterdeployment", ADAPTER)
    digest = finished["status"]["adapter"]["digest"]
    assert condition(item, "Ready")["status"] == "True"
    assert item["status"]["active"]["digest"] == digest
    assert item["status"]["pods"] == {"total": 1, "updated": 1, "ready": 1}
    (pod,) = [pod for pod in demo.namespace.all("pods", "app=vllm") if is_ready(pod)]
    assert [
        (pod_status["name"], pod_status["state"], pod_status["digest"]) for pod_status in item["status"]["podStatus"]
    ] == [(pod["metadata"]["name"], "Active", digest)]


def test_the_adapter_answers_otherwise_than_the_base(demo: Demo) -> None:
    assert {BASE, ADAPTER} <= set(demo.engine.models())
    assert demo.engine.answer(ADAPTER) != demo.engine.answer(BASE)


def test_kubectl_get_shows_where_the_job_and_the_roll_out_are(demo: Demo) -> None:
    header, row = demo.namespace.kubectl("get", "ftj", JOB).splitlines()
    assert header.split() == ["NAME", "PHASE", "STEP", "PERCENT", "LOSS", "ETA", "READY", "REASON", "AGE"]
    assert row.split()[:4] == [JOB, "Succeeded", "15", "100"]
    assert row.split()[-3:-1] == ["True", "AdapterVerified"]
    header, row = demo.namespace.kubectl("get", "adp", ADAPTER).splitlines()
    assert header.split() == ["NAME", "SERVED", "NAME", "TARGET", "UPDATED", "PODS", "READY", "REASON", "AGE"]
    assert row.split()[:-1] == [ADAPTER, "shakespeare", "vllm", "1", "1", "True", "Serving"]


def test_a_second_run_uses_what_is_there(demo: Demo) -> None:
    before = identities(demo)
    output = run_demo(demo.namespace)
    assert identities(demo) == before
    assert "Held-out loss on Hamlet" in output


def identities(demo: Demo) -> dict[str, str]:
    """Return the uid of everything that another run must not make again."""
    pods = [*demo.namespace.all("pods"), *demo.system.all("pods")]
    custom = [demo.namespace.get("finetunejob", JOB), demo.namespace.get("adapterdeployment", ADAPTER)]
    return {item["metadata"]["name"]: item["metadata"]["uid"] for item in [*pods, *custom]}


def read(demo: Demo, key: str) -> bytes:
    """Return an object of the demo's bucket for adapters."""
    client: Any = demo_client(demo.namespace)
    return bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())


def sha256(content: bytes) -> str:
    """Return the digest as manifests write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
