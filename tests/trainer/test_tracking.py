"""MLflow and Weights & Biases: one run over all attempts, and an unavailable service loses only its curves."""

import importlib.util
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import EXIT_CODES, Reason
from finetune_trainer.preflight import check
from finetune_trainer.runtime.settings import Settings
from tools.testing.mlflow_server import running_mlflow
from tools.testing.trainer_jobs import Workbench, train, train_until


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the keys that a run reads from its Secrets, and let Weights & Biases write files without its service."""
    for key in ("MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(key, "")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


def settings(bench: Workbench, **tracking: Any) -> Settings:
    """Return a job that is followed, with a Secret for each service."""
    for name, key in (("mlflow", "MLFLOW_TRACKING_TOKEN"), ("wandb", "WANDB_API_KEY")):
        secret = bench.mounts / "secrets" / name
        secret.mkdir(exist_ok=True)
        (secret / key).write_text("0123456789abcdef0123456789abcdef01234567")
    return bench.settings(tracking=tracking)


def test_mlflow_has_one_run_of_all_attempts(bench: Workbench) -> None:
    with running_mlflow() as server:
        tracking = {"uri": server.uri, "secretRef": {"name": "mlflow"}}
        assert train_until(settings(bench, mlflow=tracking), 3).reason == "Preempted"
        result, _ = train(settings(bench, mlflow=tracking))
    assert result.reason == "Succeeded", result.message
    assert server.experiments == ["team/job"]
    assert list(server.runs) == ["run-1"]
    assert server.states == ["KILLED", "RUNNING", "FINISHED"]
    assert [step for key, step, _ in server.metrics if key == "loss"] == [1, 2, 3, 4, 5, 6]
    assert result.evaluation is not None
    assert ("base_eval_loss", 6, result.evaluation.base_loss) in server.metrics
    assert server.parameters["spec.method.lora.rank"] == "4"
    assert server.keys == {"Bearer 0123456789abcdef0123456789abcdef01234567"}


def test_an_unavailable_server_costs_its_curves_only(
    bench: Workbench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result, _ = train(settings(bench, mlflow={"uri": "http://127.0.0.1:9"}))
    assert result.reason == "Succeeded", result.message
    assert "no more metrics are sent to mlflow" in caplog.text


def records(content: bytes) -> Iterator[bytes]:
    """Read the records of a .wandb file: LevelDB's log format, in blocks of 32 KiB, after a header of seven bytes."""
    at, pending = 7, b""
    while at + 7 <= len(content):
        space = 32768 - at % 32768
        if space < 7:
            at += space
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        pending += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            yield pending
            pending = b""


def test_weights_and_biases_has_the_runs_id_and_every_step(bench: Workbench) -> None:
    record_type = importlib.import_module("wandb.proto.wandb_internal_pb2").Record  # not declared for type checkers
    followed = settings(bench, wandb={"project": "tests", "secretRef": {"name": "wandb"}})
    result, _ = train(followed)
    assert result.reason == "Succeeded", result.message
    (file,) = (followed.scratch / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert followed.job.metadata.uid in file.name
    events = list(map(record_type.FromString, records(file.read_bytes())))
    assert events[-1].WhichOneof("record_type") == "exit"
    losses = [
        (entry.step.num, float(item.value_json))
        for entry in (record.history for record in events)
        for item in entry.item
        if "loss" in (item.key, *item.nested_key)
    ]
    metrics = [json.loads(line) for line in bench.read("team/job/adapter/metrics.jsonl").splitlines()]
    assert losses == [(entry["step"], entry["loss"]) for entry in metrics if "loss" in entry]
    assert os.environ["WANDB_API_KEY"] == "0123456789abcdef0123456789abcdef01234567"


def test_a_secret_without_its_key_is_found_before_any_gpu_is_asked_for(bench: Workbench) -> None:
    followed = settings(bench, wandb={"project": "tests", "secretRef": {"name": "wandb"}})
    (bench.mounts / "secrets" / "wandb" / "WANDB_API_KEY").rename(bench.mounts / "secrets" / "wandb" / "API_KEY")
    (problem,) = check(followed).problems
    assert (problem.reason, problem.field) == (Reason.SPEC_INVALID, "spec.tracking.wandb.secretRef")
    assert "Secret 'wandb' must have WANDB_API_KEY: the Secret has other keys" in problem.message


def test_a_library_that_is_not_there_is_named_with_its_remedy(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = importlib.util.find_spec
    followed = settings(bench, mlflow={"uri": "http://127.0.0.1:9"})
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "mlflow" else original(name, *more)
    )
    assert check(followed).problems == [], "the preflight's image has no need of it"
    result, _ = train(followed)
    assert result.reason is Reason.SPEC_INVALID
    assert "uv pip install 'finetune-operator[tracking]'" in result.message
    (problem,) = check(replace(followed, workstation=True, output_directory=bench.directory / "output")).problems
    assert (problem.field, EXIT_CODES[problem.reason]) == ("spec.tracking.mlflow", 10)
