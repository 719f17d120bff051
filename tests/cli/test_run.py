"""What ``finetune run`` refuses before anything heavy is imported."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune_api.finetunejob import EvaluationStatus
from finetune_api.messages import TrainerResult
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_cli import run
from finetune_cli.changes import apply_changes
from finetune_cli.errors import CliError
from finetune_cli.yaml_reader import Document
from tests.api.objects import FINETUNE_JOB
from tests.cli.run import finetune

INVALID = EXIT_CODES[Reason.SPEC_INVALID]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(FINETUNE_JOB))
    return path


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("spec.training.maxSteps=10", "maxSteps", 10),
        ("spec.training.packing=true", "packing", True),
        ("spec.training.learningRate=1.5e-3", "learningRate", 1.5e-3),
        ("spec.training.optimizer=paged_adamw_8bit", "optimizer", "paged_adamw_8bit"),
    ],
)
def test_a_value_has_the_type_that_yaml_gives_it(change: str, path: str, value: object) -> None:
    assert apply_changes(FINETUNE_JOB, (change,), 1)["spec"]["training"][path] == value


def test_sections_lists_maps_and_null() -> None:
    changed = apply_changes(
        FINETUNE_JOB,
        (
            "spec.method={qlora: {rank: 4}}",
            "spec.method.qlora.targetModules=[q_proj, v_proj]",
            "spec.resources.limits.nvidia.com/gpu=1",
            "spec.output.s3.endpoint=null",
            "metadata.name=other",
        ),
        1,
    )
    assert changed["spec"]["method"] == {"qlora": {"rank": 4, "targetModules": ["q_proj", "v_proj"]}}
    assert changed["spec"]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "endpoint" not in changed["spec"]["output"]["s3"]
    assert changed["metadata"]["name"] == "other"
    assert FINETUNE_JOB["metadata"]["name"] != "other", "the original is left as it was"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("spec.training.maxstep=10", "spec.training has no field 'maxstep': did you mean maxSteps"),
        ("spec.trainig.maxSteps=10", "spec has no field 'trainig': did you mean training"),
        ("spec.zzz=1", "spec has no field 'zzz': it has model, dataset"),
        ("status.phase=x", "a FineTuneJob has no field 'status': it has metadata, spec"),
        ("spec.training.maxSteps.x=1", "spec.training.maxSteps has no fields of its own: remove .x"),
        ("spec.training.maxSteps", "found no =: write PATH=VALUE"),
        ("spec.training.maxSteps=[", "the value is not YAML"),
        ("spec.training.maxSteps=ten", "spec.training.maxSteps: "),
        ("spec.method.lora.rank=0", "spec.method.lora.rank: "),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(file: Path, change: str, message: str) -> None:
    refused = finetune("run", str(file), "--set", change)
    assert refused.code == INVALID
    assert message in refused.err
    assert refused.out == ""


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([FINETUNE_JOB, FINETUNE_JOB], "must have exactly one FineTuneJob, found: FineTuneJob, FineTuneJob"),
        ([{"kind": "Pod"}], "must have exactly one FineTuneJob, found: Pod"),
    ],
)
def test_a_file_has_one_job(tmp_path: Path, documents: list[object], message: str) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump_all(documents))
    refused = finetune("run", str(tmp_path / "job.yaml"))
    assert refused.code == INVALID
    assert message in refused.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("spec.model.uri=pvc://models/tiny", "spec.model.uri: pvc://models/tiny is on a PersistentVolumeClaim"),
        ("spec.dataset.uri=configmap://data/train.jsonl", "spec.dataset.uri: configmap://data/train.jsonl is in a"),
    ],
)
def test_what_only_a_cluster_has_must_be_named(file: Path, change: str, message: str) -> None:
    refused = finetune("run", str(file), "--set", "spec.model.uri=hf://a/b", "--set", change)
    assert refused.code == INVALID
    assert message in refused.err
    assert "--mount " in refused.err


def test_a_mount_is_a_directory(file: Path, tmp_path: Path) -> None:
    refused = finetune("run", str(file), "--mount", f"models={tmp_path / 'none'}")
    assert refused.code == INVALID
    assert f"{tmp_path / 'none'} is not a directory" in refused.err


def test_without_the_trainers_libraries_it_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "trl") else find(name))
    with pytest.raises(CliError, match="torch, trl not found") as caught:
        run.require_trainer()
    assert "uv pip install 'finetune-operator[trainer]'" in str(caught.value)


def test_the_file_is_checked_before_anything_heavy_is_imported(file: Path) -> None:
    code = (
        "import json, sys; from finetune_cli import run; from finetune_cli.documents import read_documents;"
        f"r = run.Request({str(file)!r}, None, (), (), False);"
        "run.read_job(r, read_documents(r.file)); run.require_trainer();"
        "heavy = ('torch', 'transformers', 'boto3', 'finetune_trainer.runtime.settings');"
        "print(json.dumps([n for n in heavy if n in sys.modules]))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(loaded.stdout) == []


def test_another_job_is_never_taken_for_the_same(file: Path) -> None:
    def uid(*changes: str) -> str:
        request = run.Request(str(file), None, changes, (), False)
        return run.read_job(request, [Document(1, FINETUNE_JOB)]).metadata.uid

    assert uid() == uid("spec.checkpoint.everySteps=3", "metadata.name=other")
    assert uid() != uid("spec.training.seed=3")
    on_the_way, strict = "spec.evaluation.everySteps=5", "spec.evaluation.gate={max: 1}"
    assert uid() == uid(on_the_way, strict), "the same training, judged in another way"
    assert uid() != uid(on_the_way, "spec.evaluation.selectBest=true")


def test_a_rejected_adapter_is_reported_with_what_was_found(file: Path) -> None:
    result = TrainerResult(
        reason=Reason.GATE_FAILED,
        message="spec.evaluation.gate: the held-out loss is 3.6, wanted at most 3",
        evaluation=EvaluationStatus(base_loss=3.9, loss=3.6, improvement_percent=7.7, rows=20, passed=False),
    )
    assert run.describe_result(result, run.Request(str(file), None, (), (), False)) == [
        "failed: GateFailed: spec.evaluation.gate: the held-out loss is 3.6, wanted at most 3",
        "held-out loss 3.900 → 3.600 (7.7% lower, 20 rows)",
        "did not pass the gate: not published",
    ]
    assert run.exit_code(result) == EXIT_CODES[Reason.GATE_FAILED]
