"""Push the finished adapter to a fake hub: all of it is there, or the attempt fails and can be repeated."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from finetune_api.reasons import Reason
from finetune_trainer.preflight import check
from finetune_trainer.publish import publishing
from finetune_trainer.runtime.settings import Settings
from tools.testing.hub_server import COMMIT, READ_TOKEN, TOKEN, Hub, running_hub
from tools.testing.trainer_jobs import Workbench, train


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Yield a hub with no repositories."""
    with running_hub({}, set()) as running:
        yield running


def settings(bench: Workbench, hub: Hub, token: str | None = TOKEN) -> Settings:
    """Return the settings of a job whose adapter goes to org/adapter as well."""
    secret = bench.mounts / "secrets" / "hub"
    secret.mkdir(exist_ok=True)
    if token is not None:
        (secret / "HF_TOKEN").write_text(token)
    output: dict[str, Any] = bench.job()["spec"]["output"]
    output_with_hub = {**output, "hub": {"repo": "org/adapter", "secretRef": {"name": "hub"}}}
    return replace(bench.settings(output=output_with_hub), hub_endpoint=hub.endpoint)


def test_the_adapter_its_card_and_its_report_are_on_the_hub(bench: Workbench, hub: Hub) -> None:
    hub.broken = True
    failed, _ = train(settings(bench, hub))
    assert failed.reason is Reason.UPLOAD_FAILED
    assert f"the hub at {hub.endpoint} answered 422 for org/adapter" in failed.message
    assert not [key for key in bench.objects() if key.endswith("adapter/manifest.json")], "not finished without the hub"

    hub.broken = False
    result, _ = train(settings(bench, hub))
    assert result.reason == "Succeeded", result.message
    assert result.adapter is not None
    assert result.adapter.hub == bench.manifest().hub == f"hf://org/adapter@{COMMIT}"
    assert hub.visibilities == {"org/adapter": "private"}
    assert hub.pushed["org/adapter/adapter_model.safetensors"] == bench.weights()
    for entry in bench.manifest().files:
        assert hub.pushed[f"org/adapter/{entry.path}"] == bench.read(f"team/job/adapter/{entry.path}")
    assert ModelCard(hub.pushed["org/adapter/README.md"].decode()).data.to_dict()["library_name"] == "peft"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "Secret 'hub' must have the key HF_TOKEN: it has no such key"),
        ("hf_unknown", "refuses to write to org/adapter (401)"),
        (READ_TOKEN, "the token of someone at {endpoint} may only read"),
    ],
)
def test_a_token_that_may_not_write_is_refused_before_any_gpu_is_asked_for(
    bench: Workbench, hub: Hub, token: str | None, message: str
) -> None:
    (problem,) = check(settings(bench, hub, token)).problems
    assert (problem.reason, problem.field) == (Reason.OUTPUT_ACCESS_DENIED, "spec.output.hub.secretRef")
    assert message.format(endpoint=hub.endpoint) in problem.message


def test_an_unavailable_hub_is_named(bench: Workbench, hub: Hub) -> None:
    away = replace(settings(bench, hub), hub_endpoint="http://127.0.0.1:9")
    (problem,) = check(away).problems
    assert (problem.reason, problem.field) == (Reason.UPLOAD_FAILED, "spec.output.hub")


def test_on_a_workstation_the_token_is_the_environments(
    bench: Workbench, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    local = replace(settings(bench, hub, None), workstation=True, output_directory=tmp_path / "output")
    assert check(local).problems == []


def test_the_next_attempt_repairs_one_that_died_between_hub_and_manifest(
    bench: Workbench, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: Any) -> str:
        raise OSError("the node is gone")

    with monkeypatch.context() as first:
        first.setattr(publishing, "put_manifest", dying)
        assert train(settings(bench, hub))[0].reason is Reason.TRAINER_ERROR
    assert "org/adapter/adapter_model.safetensors" in hub.pushed
    assert not [key for key in bench.objects() if key.endswith("adapter/manifest.json")]
    result, _ = train(settings(bench, hub))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 6)
    assert result.adapter is not None
    assert result.adapter.hub == bench.manifest().hub == f"hf://org/adapter@{COMMIT}"
    for entry in bench.manifest().files:
        assert hub.pushed[f"org/adapter/{entry.path}"] == bench.read(f"team/job/adapter/{entry.path}")
