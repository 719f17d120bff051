"""``finetune run``: the same job without a cluster, killed, stopped at a terminal, run to the end, and run again."""

import io
import json
import os
import pty
import signal
import subprocess
from dataclasses import replace
from typing import Any

import pytest
import yaml

from finetune_api.finetunejob import FineTuneJob
from finetune_api.manifest import AdapterManifest
from finetune_api.messages import TrainerResult
from finetune_api.offline import validate
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_artifacts.digests import digest_of_file
from finetune_trainer.runtime.settings import Settings
from tests.cli.run import COMMAND, finetune
from tools.testing.trainer_jobs import Workbench, train

LONG = {"maxSteps": 150, "perDeviceBatchSize": 2, "maxLength": 48, "learningRate": 1e-3, "scheduler": "cosine"}


class Workstation:
    """A job's file with its data in it, and a directory for what comes out."""

    def __init__(self, bench: Workbench) -> None:
        """Write the job's file into the bench's directory."""
        self.directory = bench.directory
        self.models = bench.mounts / "claims" / "models"
        self.output = bench.directory / "output"
        self.job = bench.job(training=LONG, checkpoint={"everySteps": 5}) | {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
        }
        data = (bench.mounts / "configmaps" / "data" / "train.jsonl").read_text()
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "data"}, "data": {"train.jsonl": data}}
        self.file = bench.directory / "job.yaml"
        self.file.write_text(yaml.safe_dump_all([self.job, config]))

    def arguments(self, *options: str) -> list[str]:
        return ["run", str(self.file), "--output", str(self.output), "--mount", f"models={self.models}", *options]

    def start(self, **streams: Any) -> "subprocess.Popen[str]":
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "TERM": "xterm"}
        return subprocess.Popen([*COMMAND, *self.arguments()], env=environment, text=True, **streams)

    def weights(self) -> bytes:
        return (self.output / "adapter" / "adapter_model.safetensors").read_bytes()

    def uninterrupted(self, bench: Workbench) -> bytes:
        """Return the weights of the same job, made in this process and in one go."""
        rendered, _ = validate(self.job)
        settings = replace(
            bench.settings(), job=FineTuneJob.of(rendered), workstation=True, output_directory=self.directory / "whole"
        )
        result, _ = train(settings)
        assert result.reason == "Succeeded", result.message
        return (self.directory / "whole" / "adapter" / "adapter_model.safetensors").read_bytes()


def read_until(terminal: io.TextIOWrapper, expected: str) -> str:
    """Return what a terminal shows until it has shown this text."""
    output = ""
    while expected not in output:
        output += terminal.read(1)
    return output


def test_killed_then_stopped_by_ctrl_c_it_ends_bit_identical(bench: Workbench) -> None:
    workstation = Workstation(bench)

    killed = workstation.start(stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert killed.stderr is not None
    lines = iter(killed.stderr)
    assert any("checkpoint of step" in line for line in lines)
    second = finetune(*workstation.arguments())
    assert second.code == 1
    assert "another `finetune run` uses" in second.err
    killed.kill()
    killed.wait()
    assert not (workstation.output / "adapter").exists()

    ours, theirs = pty.openpty()
    stopped = workstation.start(stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    with os.fdopen(ours, "r", errors="replace", newline="") as terminal:
        before = read_until(terminal, "continuing from step")
        read_until(terminal, "tok/s")
        stopped.send_signal(signal.SIGINT)
        read_until(terminal, "asked to stop: saving a checkpoint of step")
        out, _ = stopped.communicate(timeout=60)
    assert "no checkpoint to continue from" not in before
    assert stopped.returncode == EXIT_CODES[Reason.PREEMPTED]
    assert "run the same command again to continue" in out

    last = finetune(*workstation.arguments("--json"), environment={"OMP_NUM_THREADS": "1"})
    assert last.code == 0, last.err
    assert "step 150 of 150 (100 %): loss " in last.err
    result = TrainerResult.model_validate_json(last.out)
    assert result.resumed_from_step
    assert f"asked to stop; the checkpoint of step {result.resumed_from_step} is saved" in out
    assert len(result.warnings) == len(set(result.warnings)), "what the preflight said is not said again"
    assert result.adapter is not None
    assert result.adapter.uri == str(workstation.output / "adapter")
    assert workstation.weights() == workstation.uninterrupted(bench)

    manifest = AdapterManifest.model_validate_json((workstation.output / "adapter" / "manifest.json").read_bytes())
    for entry in manifest.files:
        assert digest_of_file(workstation.output / "adapter" / entry.path) == entry.sha256
    names = {path.name for path in workstation.output.iterdir()}
    assert names == {"adapter", "checkpoints", "report.html", "metrics.jsonl"}, "nothing unfinished is left"
    steps = [json.loads(line)["step"] for line in (workstation.output / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 150

    again = finetune(*workstation.arguments())
    assert again.code == 0
    assert result.adapter.digest in again.out
    assert "importing torch" not in again.err
    for change, reason, explanation in (
        ("spec.evaluation.compareWithFull=true", Reason.OUTPUT_EXISTS, "spec.evaluation.compareWithFull: "),
        ("spec.evaluation.gate={max: 0.001}", Reason.GATE_FAILED, "was published before there was this gate"),
    ):
        ran = finetune(*workstation.arguments("--set", change))
        assert (ran.code, explanation in ran.out) == (EXIT_CODES[reason], True), ran.out
    merged = finetune(*workstation.arguments("--set", "spec.output.mergedModel=true"))
    assert merged.code == 0, merged.err
    assert f"merged model {workstation.output / 'merged'}" in merged.out
    assert {"model.safetensors", "manifest.json"} <= {path.name for path in (workstation.output / "merged").iterdir()}
    refused = finetune(*workstation.arguments("--set", "spec.training.maxSteps=10"))
    assert refused.code == EXIT_CODES[Reason.OUTPUT_EXISTS]
    assert "--output: " in refused.out
    assert "choose another location, or delete" in refused.out


def test_without_output_the_adapter_goes_to_s3_with_the_environments_keys(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = bench.mounts / "secrets" / "s3-credentials"
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, (secret / key).read_text())
        (secret / key).unlink()
    settings: Settings = replace(bench.settings(), workstation=True)
    result, _ = train(settings)
    assert result.reason == "Succeeded", result.message
    assert result.adapter is not None
    assert result.adapter.uri == f"s3://{bench.bucket}/team/job/adapter"


def test_keys_that_are_refused_are_looked_for_where_they_come_from(bench: Workbench) -> None:
    workstation = Workstation(bench)
    arguments = [item for item in workstation.arguments() if item not in ("--output", str(workstation.output))]
    wrong = {
        "AWS_ACCESS_KEY_ID": "test-access",
        "AWS_SECRET_ACCESS_KEY": "wrong-key",
        "XDG_CACHE_HOME": str(bench.directory),
    }
    refused = finetune(*arguments, environment=wrong)
    assert refused.code == EXIT_CODES[Reason.OUTPUT_ACCESS_DENIED]
    assert "credentials come from AWS_* variables" in refused.out
    assert "wrong-key" not in refused.out + refused.err
    assert "importing torch" not in refused.err


def test_what_the_preflight_finds_is_reported_before_torch_is_imported(bench: Workbench) -> None:
    workstation = Workstation(bench)
    rows = bench.mounts / "configmaps" / "data" / "train.jsonl"
    changes = (
        "spec.method.lora.targetModules=[no_such]",
        f"spec.dataset.uri=file://{rows}",
        f"spec.model.uri=file://{bench.mounts}/claims/models/tiny",
    )
    refused = finetune(*workstation.arguments("--json", *(word for change in changes for word in ("--set", change))))
    assert refused.code == EXIT_CODES[Reason.TARGET_MODULES_NOT_FOUND]
    result = json.loads(refused.out)
    assert result["reason"] == "TargetModulesNotFound"
    assert result["message"].startswith("spec.method.lora.targetModules: "), "the dataset on this machine was read"
    assert "no_such" in result["message"]
    assert "importing torch" not in refused.err


@pytest.mark.exhaustive  # tests/e2e/test_job_two_gpus.py has two processes in a pod
def test_two_processes_train_on_a_workstation_and_one_continues(bench: Workbench) -> None:
    workstation = Workstation(bench)
    two = ("--set", "spec.resources.gpusPerNode=2", "--set", "spec.training.maxSteps=200")
    running = subprocess.Popen(
        [*COMMAND, *workstation.arguments(*two)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stderr is not None
    assert any("checkpoint of step" in line for line in running.stderr), running.stdout
    os.killpg(running.pid, signal.SIGINT)  # Ctrl-C reaches the processes of a terminal all at once
    out, _ = running.communicate(timeout=240)
    assert running.returncode == EXIT_CODES[Reason.PREEMPTED], out
    options = ("--set", "spec.training.gradientAccumulationSteps=2", "--set", "spec.training.maxSteps=200")
    ran = finetune(*workstation.arguments(*options), "--json")
    result = TrainerResult.model_validate_json(ran.out)
    assert result.reason == "Succeeded", result.message
    assert result.resumed_from_step is not None
    assert any("processes 2 → 1" in warning for warning in result.warnings)
