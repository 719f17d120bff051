"""Models from the hub, through its own client, against a stand-in of its HTTP interface."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from finetune_api.reasons import Reason
from finetune_trainer.preflight import check
from finetune_trainer.runtime.settings import Settings
from tools.testing import hub_server
from tools.testing.hub_server import COMMIT, TOKEN, Hub, running_hub
from tools.testing.trainer_jobs import Workbench, train


@pytest.fixture
def hub(base_model: Path, tmp_path: Path) -> Iterator[Hub]:
    """Yield a hub with a public model, a gated one, and one that has nothing but pickled weights."""
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with running_hub(
        {"acme/tiny": base_model, "acme/gated": base_model, "acme/pickled": pickled}, gated={"acme/gated"}
    ) as running:
        yield running


def settings(
    bench: Workbench, hub: Hub, repo: str, *, revision: str | None = None, token: str | None = None
) -> Settings:
    """Return settings of a job on a hub model."""
    model = {"uri": f"hf://{repo}"} | ({"revision": revision} if revision else {})
    if token is not None:
        secret = bench.mounts / "secrets" / "hub"
        secret.mkdir(parents=True, exist_ok=True)
        (secret / "HF_TOKEN").write_text(token)
        model |= {"secretRef": {"name": "hub"}}  # type: ignore[dict-item]
    return dataclasses.replace(bench.settings(model=model, method={"lora": {"rank": 4}}), hub_endpoint=hub.endpoint)


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_revision_is_resolved_to_a_commit(bench: Workbench, hub: Hub, revision: str | None) -> None:
    result = check(settings(bench, hub, "acme/tiny", revision=revision))
    assert result.problems == []
    assert result.model_revision == COMMIT
    assert result.estimate is not None
    assert result.estimate.trainable_parameters == 8192


def test_only_the_header_of_the_weights_is_read(bench: Workbench, hub: Hub, tmp_path: Path, base_model: Path) -> None:
    import numpy

    large = tmp_path / "large"
    large.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (large / name).write_bytes((base_model / name).read_bytes())
    weights = load_file(base_model / "model.safetensors")
    save_file(weights | {"further": numpy.zeros(2_000_000, numpy.float32)}, large / "model.safetensors")
    hub.repositories["acme/large"] = large
    result = check(settings(bench, hub, "acme/large"))
    assert result.problems == []
    assert result.estimate is not None
    assert result.estimate.trainable_parameters == 8192
    assert 0 < hub.sent_bytes["model.safetensors"] < 1_000_000 < (large / "model.safetensors").stat().st_size


@pytest.mark.parametrize("token", [None, "hf_wrongtoken"])
def test_a_gated_model_without_the_right_token_names_its_licence_page(
    bench: Workbench, hub: Hub, token: str | None
) -> None:
    result = check(settings(bench, hub, "acme/gated", token=token))
    assert [problem.reason for problem in result.problems] == [Reason.MODEL_ACCESS_DENIED]
    assert f"{hub.endpoint}/acme/gated" in result.problems[0].message
    assert "HF_TOKEN" in result.problems[0].message
    assert "hf_wrongtoken" not in json.dumps(result.to_json())


def test_a_gated_model_with_the_right_token(bench: Workbench, hub: Hub) -> None:
    assert check(settings(bench, hub, "acme/gated", token=TOKEN)).problems == []


def test_a_model_or_revision_that_does_not_exist(bench: Workbench, hub: Hub) -> None:
    problem = check(settings(bench, hub, "acme/nothing")).problems[0]
    assert (problem.reason, problem.field) == (Reason.MODEL_NOT_FOUND, "spec.model.uri")
    problem = check(settings(bench, hub, "acme/tiny", revision="v9")).problems[0]
    assert (problem.reason, problem.field) == (Reason.MODEL_NOT_FOUND, "spec.model.revision")
    assert "'v9'" in problem.message


def test_pickled_weights_are_refused(bench: Workbench, hub: Hub) -> None:
    problem = check(settings(bench, hub, "acme/pickled")).problems[0]
    assert problem.reason is Reason.MODEL_UNSUPPORTED
    assert "pytorch_model.bin" in problem.message


def test_a_secret_without_a_token(bench: Workbench, hub: Hub) -> None:
    problem = check(settings(bench, hub, "acme/tiny", token="")).problems[0]
    assert (problem.reason, problem.field) == (Reason.MODEL_ACCESS_DENIED, "spec.model.secretRef")


def test_a_hub_that_does_not_answer(bench: Workbench, hub: Hub) -> None:
    problem = check(dataclasses.replace(settings(bench, hub, "acme/tiny"), hub_endpoint="http://127.0.0.1:9")).problems[
        0
    ]
    assert problem.reason is Reason.DOWNLOAD_FAILED
    assert "http://127.0.0.1:9" in problem.message


def test_an_adapter_knows_its_hub_model_by_name_and_commit(bench: Workbench, hub: Hub) -> None:
    result, _ = train(settings(bench, hub, "acme/gated", revision="v1", token=TOKEN))
    assert result.reason == "Succeeded", result.message
    assert result.adapter is not None
    assert (result.adapter.base_model, result.adapter.base_revision) == ("acme/gated", COMMIT)
    config = json.loads(bench.read("team/job/adapter/adapter_config.json"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("acme/gated", COMMIT)


def test_a_gated_model_ends_a_training_with_its_reason(bench: Workbench, hub: Hub) -> None:
    result, _ = train(settings(bench, hub, "acme/gated"))
    assert result.reason is Reason.MODEL_ACCESS_DENIED


def test_training_continues_from_an_adapter_of_the_very_same_commit_only(
    bench: Workbench, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = train(settings(bench, hub, "acme/tiny"))
    assert first.adapter is not None
    job = bench.job(method={"lora": {"rank": 4}})
    job["spec"]["model"] = {
        "uri": "hf://acme/tiny",
        "adapter": {"uri": first.adapter.uri, "digest": first.adapter.digest},
    }
    job["spec"]["output"]["s3"]["prefix"] = "team/more"
    continuing = dataclasses.replace(bench.settings_of(job), hub_endpoint=hub.endpoint)
    assert check(continuing).problems == []
    moved = f"{COMMIT[:-1]}8"
    monkeypatch.setattr(hub_server, "COMMIT", moved)
    (problem,) = check(continuing).problems
    assert (problem.reason, problem.field) == (Reason.SPEC_INVALID, "spec.model.revision")
    assert f"commit {COMMIT}, and this job would train on {moved}: set the revision to {COMMIT}" in problem.message
    result, _ = train(continuing)
    assert result.reason is Reason.SPEC_INVALID
    assert result.message == str(problem)
