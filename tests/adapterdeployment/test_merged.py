"""An engine without LoRA: which merged model its pods are started with, and what the operator waits for."""

import json
from typing import Any

import pytest

from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Observed, Plan
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from tests.adapterdeployment.groups import (
    NAME,
    NOW,
    SETTINGS,
    V1,
    V2,
    adapter,
    build_source,
    deployment,
    group,
    job,
    make_pass,
    read_conditions,
    uri,
)

COMMAND = ["trtllm-serve", "$(FINETUNE_PATH_BOT)", "--port", "8000"]


def merged(name: str = "bot", digest: str | None = None, **fields: Any) -> Object:
    """Return an AdapterDeployment for an engine without LoRA; without a digest for the FineTuneJob ``job``."""
    target = {"deploymentRef": {"name": NAME}, "engine": "merged", "container": "vllm"}
    return adapter(name, digest, strategy={"type": "Rolling"}, target=target, **fields)


def job_with(merge: tuple[str, str, str] | None, digest: str | None = None) -> Object:
    """Return the FineTuneJob with its condition Merged, and the digest of its merged model."""
    item = job()
    if merge is not None:
        kind, reason, message = merge
        item["status"]["conditions"].append({"type": "Merged", "status": kind, "reason": reason, "message": message})
    if digest is not None:
        item["status"]["mergedModel"] = {"uri": uri(digest), "digest": digest, "sizeBytes": 1}
    return item


def observe(*resources: Object, finetune_job: Object | None = None, args: list[str] | None = None) -> Observed:
    jobs = {"job": finetune_job} if finetune_job is not None else {}
    return group(*resources, finetune_jobs=jobs, workload=deployment(args=args or COMMAND))


def plan(observed: Observed) -> Plan:
    return make_plan(observed, NOW, SETTINGS)


def test_the_pods_are_started_with_the_merged_model_of_the_job() -> None:
    observed = observe(merged(), finetune_job=job_with(("True", "ModelMerged", "done"), V2))
    made = plan(observed)
    assert made.injection is not None
    template = made.injection.body["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["env"] == [
        {"name": "FINETUNE_PATH_BOT", "value": "/adapters/bot-name/" + V2.removeprefix("sha256:")}
    ]
    assert [item["name"] for item in template["spec"]["initContainers"]] == ["finetune-agent", "finetune-fetch"]
    state = json.loads(template["metadata"]["annotations"]["finetune-operator.io/versions"])
    assert (state["engine"], state["adapters"][0]["version"]["digest"]) == ("merged", V2)
    assert read_conditions(make_pass(observed))["Accepted"][0] == "True"


def test_a_selector_follows_the_merged_models() -> None:
    finetune_job = job_with(("True", "ModelMerged", "done"), V2)
    finetune_job["metadata"]["labels"] = {"app": "bot"}
    finetune_job["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    source = {"selector": {"matchLabels": {"app": "bot"}}}
    resource = merged()
    resource["spec"]["adapter"] = source
    (member,) = plan(observe(resource, finetune_job=finetune_job)).members
    assert member.desired is not None
    assert member.desired.version.digest == V2


@pytest.mark.parametrize(
    ("merge", "status", "reason", "text"),
    [
        (None, "False", "AdapterUnsupported", "makes none: train with spec.output.mergedModel: true"),
        (("Unknown", "Merging", "A pod merges."), "Unknown", "AdapterNotReady", "waiting for the merged model"),
        (("False", "OutOfMemory", "too large"), "False", "MergeFailed", "OutOfMemory: too large"),
    ],
)
def test_without_a_merged_model_nothing_is_touched(
    merge: tuple[str, str, str] | None, status: str, reason: str, text: str
) -> None:
    observed = observe(merged(), finetune_job=job_with(merge))
    made = plan(observed)
    assert made.injection is None
    obstacle = made.members[0].obstacle
    assert obstacle is not None
    assert text in obstacle.message
    assert read_conditions(make_pass(observed))["Accepted"] == (status, reason)


@pytest.mark.parametrize("args", [["serve", "/models/base"], ["serve", "$(FINETUNE_PATH_BOT_2)"]])
def test_an_engine_that_is_started_with_another_model_is_refused(args: list[str]) -> None:
    observed = observe(merged(digest=V1), args=args)
    (member,) = plan(observed).members
    assert member.obstacle is not None
    assert "write $(FINETUNE_PATH_BOT), which is the model's directory" in member.obstacle.message
    assert read_conditions(make_pass(observed))["Accepted"] == ("False", "ModelNotNamed")


@pytest.mark.parametrize(
    "args",
    [["sh", "-c", "exec text-generation-launcher --model-id ${FINETUNE_PATH_BOT}"], ["--model=$(FINETUNE_PATH_BOT)"]],
)
def test_the_model_may_be_named_in_a_script_and_within_an_argument(args: list[str]) -> None:
    (member,) = plan(observe(merged(digest=V1), args=args)).members
    assert member.obstacle is None


def test_an_engine_serves_one_merged_model() -> None:
    second = merged("other", V2, created="2026-01-01T00:00:01Z")
    first, refused = plan(observe(merged(digest=V1), second)).members
    assert first.obstacle is None
    assert refused.obstacle is not None
    assert "an engine without LoRA serves one model: choose another Deployment" in refused.obstacle.message
    assert refused.entry is None


def test_an_adapter_and_a_merged_model_do_not_share_a_deployment() -> None:
    rolling = adapter("other", V2, created="2026-01-01T00:00:01Z", strategy={"type": "Rolling"})
    _, refused = plan(observe(merged(digest=V1), rolling)).members
    assert refused.obstacle is not None
    assert "the oldest has engine merged" in refused.obstacle.message


def test_a_version_by_its_address_needs_no_job() -> None:
    resource = merged()
    resource["spec"]["adapter"] = build_source(V2)
    (member,) = plan(observe(resource)).members
    assert member.desired is not None
    assert member.desired.version.digest == V2
