"""A whole training: from rows to a verified adapter in S3, and each way in which it can end early."""

import gzip
import json
import math
import threading
from typing import Any

import pytest
import torch

from finetune_api.manifest import GoldenSamples
from finetune_api.reasons import Reason
from finetune_artifacts.digests import digest_of
from finetune_artifacts.download import download_adapter
from finetune_artifacts.errors import Purpose
from finetune_trainer import attempt
from finetune_trainer.checkpoints.resuming import Resume
from finetune_trainer.evaluation import verification
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.session.plan import Plan
from finetune_trainer.session.progress import Reporter
from finetune_trainer.training import fit
from tools.testing.trainer_jobs import CHATS, AtCheckpoint, AtStep, Workbench, diverging_sections, jsonl, train


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_rows_become_a_verified_adapter(bench: Workbench, method: str) -> None:
    result, run = train(bench.settings(method={method: {"rank": 4}}))
    assert result.reason == "Succeeded", result.message
    assert result.adapter is not None
    assert result.evaluation is not None
    manifest = bench.manifest()
    assert result.adapter.digest == digest_of(bench.read("team/job/adapter/manifest.json"))
    assert result.adapter.uri == f"s3://{bench.bucket}/team/job/adapter"
    assert result.evaluation.loss < result.evaluation.base_loss
    assert result.evaluation.rows == 4
    assert (manifest.rank, manifest.alpha, manifest.trainable_parameters, manifest.servable_by) == (
        4,
        32,
        8192,
        ["vllm", "sglang"],
    )
    assert manifest.target_modules == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert result.usage is not None
    assert result.usage.gpu_seconds == 0, "a job without GPUs holds none"
    assert {
        "import",
        "fetch",
        "tokenize",
        "load",
        "hash",
        "train",
        "checkpoint",
        "verify",
        "evaluate",
        "publish",
    } < set(result.usage.phases)
    assert result.usage.phases["train"] > 0
    assert b"What the GPUs were held for" in bench.read("team/job/adapter/report.html")
    if method == "lora":
        assert manifest.verification["maxLogitDifference"] < 1e-5
    assert run.progress is not None
    assert run.progress.tokens_per_second is not None
    assert (run.progress.step, run.progress.percent) == (6, 100)
    config = json.loads(bench.read("team/job/adapter/adapter_config.json"))
    assert config["base_model_name_or_path"] == "pvc://models/tiny", "not the path that it was loaded from"
    metrics = [json.loads(line) for line in bench.read("team/job/adapter/metrics.jsonl").splitlines()]
    assert [entry["step"] for entry in metrics if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    stored = {key.split("/")[4] for key in bench.objects() if "/checkpoints/run-" in key}
    # on a busy machine that of step 4 may be overtaken by the last one while that of step 2 is uploaded
    assert "step-00000006" in stored
    assert len(stored) == 2, "two are kept"


def test_golden_samples_are_what_base_and_adapter_answer(bench: Workbench) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result, _ = train(bench.settings(method={"qlora": {"rank": 4}}))
    assert result.adapter is not None
    directory = bench.directory / "fetched"
    download_adapter(bench.server.store(Purpose.ADAPTER), bench.settings().adapter, result.adapter.digest, directory)
    golden = GoldenSamples.model_validate_json((directory / "golden.json").read_bytes())
    base = AutoModelForCausalLM.from_pretrained(bench.mounts / "claims" / "models" / "tiny", dtype=torch.float32).eval()

    def logprobs(model: Any, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
        return torch.stack([scores[position, token] for position, token in enumerate(ids[1:])])

    for sample in golden.samples:
        torch.testing.assert_close(
            torch.tensor(sample.base_logprobs), logprobs(base, sample.token_ids), atol=1e-4, rtol=0
        )
    tuned = PeftModel.from_pretrained(base, str(directory)).eval()
    for sample in golden.samples:
        torch.testing.assert_close(
            torch.tensor(sample.adapter_logprobs), logprobs(tuned, sample.token_ids), atol=1e-4, rtol=0
        )
        assert max(abs(a - b) for a, b in zip(sample.base_logprobs, sample.adapter_logprobs, strict=True)) > 0.01


@pytest.mark.parametrize(
    ("text", "key", "layout"),
    [
        (jsonl(CHATS), "train.jsonl", "messages"),
        ("To be, or not to be: that is the question.\n" * 60, "hamlet.txt", "plain text"),
    ],
)
def test_other_formats_train_too(bench: Workbench, text: str, key: str, layout: str) -> None:
    uri = bench.dataset(text, key)
    result, _ = train(bench.settings(dataset={"uri": uri, "validation": {"fraction": 0.2}}))
    assert result.reason == "Succeeded", result.message


def test_the_result_counts_what_became_of_the_rows(bench: Workbench) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Count on.", "context": str(n), "response": str(n + 1)} for n in range(40)
    ]
    claim = bench.mounts / "claims" / "rows"
    claim.mkdir()
    for number in range(2):
        content = gzip.compress(
            jsonl([*rows[20 * number : 20 * number + 20], rows[0], {**rows[0], "response": ""}]).encode()
        )
        (claim / f"part-{number}.jsonl.gz").write_bytes(content)
    training = bench.job()["spec"]["training"] | {"packing": True, "maxLength": 64}
    result, run = train(bench.settings(dataset={"uri": "pvc://rows/."}, training=training))
    assert result.reason == "Succeeded", result.message
    assert result.data == run.counts
    assert result.data is not None
    counts = result.data
    assert (counts.layout, counts.rows, counts.empty, counts.sequences, counts.held_out) == (
        "instruction",
        44,
        2,
        38,
        4,
    )
    assert counts.duplicates + counts.leaked == 2
    assert sum(counts.lengths) == 42
    assert (
        "spec.dataset.format auto: the dataset is read as instruction (columns instruction, context, response)"
        in result.warnings
    )


def test_an_attempt_that_died_after_the_manifest_has_succeeded(bench: Workbench) -> None:
    first, _ = train(bench.settings())
    second, _ = train(bench.settings())
    assert second.reason == "Succeeded"
    assert second.adapter == first.adapter
    assert second.evaluation == first.evaluation
    job = bench.job()
    job["metadata"] |= {"uid": "another"}
    other_result, _ = train(bench.settings_of(job))
    assert other_result.reason is Reason.OUTPUT_EXISTS
    assert "FineTuneJob team/job" in other_result.message


def test_an_s3_service_that_is_unavailable_for_a_while_only_costs_time(bench: Workbench) -> None:
    back = threading.Timer(5, bench.server.start)

    def away() -> None:
        bench.server.stop()
        back.start()

    try:
        result, _ = train(bench.settings(), lambda interruption: AtStep(3, away))
    finally:
        back.join()
    assert result.reason == "Succeeded", result.message


def test_an_s3_service_that_stays_unavailable_fails_the_attempt(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "PATIENCE_SECONDS", 1.0)
    try:
        result, _ = train(bench.settings(), lambda interruption: AtCheckpoint(bench.server.stop))
    finally:
        bench.server.start()
    assert result.reason is Reason.UPLOAD_FAILED
    assert bench.server.endpoint in result.message
    assert result.checkpoint is not None, "what was uploaded before is still said"


def test_divergence_stops_the_run_and_spares_the_good_checkpoints(bench: Workbench) -> None:
    result, _ = train(bench.settings(**diverging_sections(bench), checkpoint={"everySteps": 1}))
    assert result.reason is Reason.LOSS_DIVERGED
    assert "at step" in result.message
    assert not [key for key in bench.objects() if "/adapter/" in key]
    for key in bench.objects():
        if key.endswith("trained.safetensors"):
            from safetensors.torch import load

            assert all(torch.isfinite(tensor).all() for tensor in load(bench.read(key)).values())


def test_an_adapter_without_any_effect_is_not_published(bench: Workbench) -> None:
    training = bench.job()["spec"]["training"] | {"learningRate": 1e-30}
    result, _ = train(bench.settings(training=training))
    assert result.reason is Reason.VERIFICATION_FAILED
    assert result.message.startswith("spec.training.learningRate: the adapter changes nothing")
    assert not any("/adapter/" in key for key in bench.objects())


def test_a_base_that_changes_is_noticed(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = fit.run_loop

    def touching(trainer: Any, plan: Plan, resume: Resume | None) -> None:
        untouched(trainer, plan, resume)
        with torch.no_grad():
            trainer.model.get_base_model().model.norm.weight[0] += 1e-6

    monkeypatch.setattr(fit, "run_loop", touching)
    result, _ = train(bench.settings())
    assert result.reason is Reason.VERIFICATION_FAILED
    assert "frozen" in result.message
    assert not [key for key in bench.objects() if "/adapter/" in key]


@pytest.mark.parametrize(("method", "factor"), [("lora", 1.01), ("qlora", 0.3)])
def test_an_adapter_that_reloads_differently_is_not_published(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, method: str, factor: float
) -> None:
    from safetensors.torch import load_file, save_file

    original = verification.check_saved

    def damaging(model: Any, directory: Any) -> None:
        original(model, directory)
        path = directory / "adapter_model.safetensors"
        save_file({name: tensor * factor for name, tensor in load_file(path).items()}, path)

    monkeypatch.setattr(verification, "check_saved", damaging)
    result, _ = train(bench.settings(method={method: {"rank": 4}}))
    assert result.reason is Reason.VERIFICATION_FAILED
    assert not [key for key in bench.objects() if key.endswith("adapter/manifest.json")]
    if method == "qlora":  # of which no log-probability changes by 0.25 nats
        assert "its effect is" in result.message


def test_bad_rows_beyond_the_preflights_look_are_named_too(bench: Workbench) -> None:
    bench.dataset(jsonl([{"prompt": "a", "completion": "b"}] * 5 + [{"prompt": "a"}]))
    result, _ = train(bench.settings())
    assert result.reason is Reason.DATASET_INVALID
    assert "train.jsonl line 6: has no column 'completion'" in result.message


def test_progress_counts_useful_tokens_and_the_way_to_go(bench: Workbench) -> None:
    reports: list[tuple[int, int, float | None]] = []

    class Listener(Reporter):
        def submit(self, report: Any) -> None:
            reports.append((report.progress.step, report.progress.total_steps, report.progress.loss))

    def listen(interruption: Interruption) -> Reporter:
        return Listener(None, bench.directory)

    result, _ = train(bench.settings(evaluation={"everySteps": 3}), listen)
    assert result.progress is not None
    assert result.progress.eta_seconds == 0
    assert result.progress.eval_loss is not None
    assert reports[0][:2] == (0, 6)
    assert reports[-1][:2] == (6, 6)
    assert all(loss is None or math.isfinite(loss) for _, _, loss in reports)
