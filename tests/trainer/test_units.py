"""Parts that decide something on their own: reasons of failures, results of 4 KiB, module names, tokens of rows."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors import SafetensorError

from finetune_api import targets
from finetune_api.dataset import DatasetSource
from finetune_api.finetunejob import AdapterStatus, CheckpointStatus, ReportStatus, Training
from finetune_api.messages import PreflightResult, Problem, TrainerResult
from finetune_api.methods import Lora
from finetune_api.reasons import Reason
from finetune_artifacts.errors import ArtifactError, Fault, Purpose
from finetune_artifacts.safetensors import Tensor
from finetune_trainer.data import dataset, token_cache
from finetune_trainer.data.sources import Inputs, LocalData
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.data.tokens import IGNORED
from finetune_trainer.evaluation import samples
from finetune_trainer.models import device, modules
from finetune_trainer.runtime import result
from finetune_trainer.runtime.failures import Failure, Preempted, classify
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from finetune_trainer.training.callback import TrainingCallback
from finetune_trainer.training.watchdog import Watchdog
from tools.testing.trainer_jobs import CHATS, ROWS, jsonl, never


@pytest.mark.parametrize(
    ("error", "reason", "expected"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            Reason.OUT_OF_MEMORY,
            "2 GiB",
        ),
        (
            torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be"),
            Reason.GPU_ERROR,
            "the GPU failed: CUDA error: uncorrectable ECC error encountered",
        ),
        (RuntimeError("CUDA error: unspecified launch failure"), Reason.GPU_ERROR, "unspecified launch failure"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), Reason.GPU_ERROR, "CUDNN_STATUS_EXECUTION_FAILED"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            Reason.OUT_OF_MEMORY,
            "too little memory",
        ),
        (RuntimeError("CUDA error: out of memory"), Reason.OUT_OF_MEMORY, "too little memory"),
        (
            RuntimeError("CUDA error: device-side assert triggered"),
            Reason.TRAINER_ERROR,
            "a token without an embedding",
        ),
        (MemoryError(), Reason.HOST_OUT_OF_MEMORY, "spec.resources.limits.memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            Reason.HOST_OUT_OF_MEMORY,
            "spec.resources.limits.memory",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), Reason.TRAINER_ERROR, "no space left for /tmp/x"),
        (
            RuntimeError(
                "[enforce fail at inline_container.cc:778] . PytorchStreamWriter failed: No space left on device"
            ),
            Reason.TRAINER_ERROR,
            "give the pod more ephemeral storage",
        ),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            Reason.TRAINER_ERROR,
            "give the pod more ephemeral storage",
        ),
        (SafetensorError("Error while deserializing: header too small"), Reason.MODEL_UNSUPPORTED, "it is damaged"),
        (
            Failure(Reason.DATASET_INVALID, "row 3 is bad", "spec.dataset.uri"),
            Reason.DATASET_INVALID,
            "spec.dataset.uri: row 3 is bad",
        ),
        (ArtifactError(Purpose.OUTPUT, Fault.UNREACHABLE, "gone"), Reason.UPLOAD_FAILED, "gone"),
        (Preempted("asked"), Reason.PREEMPTED, "asked"),
        (ZeroDivisionError("division by zero"), Reason.TRAINER_ERROR, "ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_is_raised_has_a_reason(error: BaseException, reason: Reason, expected: str) -> None:
    reason_found, message = classify(error)
    assert reason_found is reason
    assert expected in message


def make_callback(run: Run, save_minutes: float | None = None) -> TrainingCallback:
    return TrainingCallback(
        run=run, reporter=Reporter(None, Path()), interruption=Interruption(60, never), uploader=None,
        checkpoint_extras={}, save_minutes=save_minutes, eval_steps=None, evaluate=lambda: None,
        on_metrics=lambda *_: None, best_weights=None, divergence_watch=None,
        watchdog=Watchdog(lambda _: None, lambda _: None),
    )  # fmt: skip


@pytest.mark.parametrize(("minutes", "saved_at"), [(2, [120, 300]), (None, []), (1000, [])])
def test_a_checkpoint_is_saved_each_time_the_minutes_are_over(
    minutes: float | None, saved_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that end at these seconds: the two minutes count from the last checkpoint, not from the step."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    state: Any = SimpleNamespace(global_step=1, max_steps=100, epoch=0.5, log_history=[])
    callback = make_callback(Run(), minutes)
    saves = []
    for now in (60, 120, 180, 300, 410):
        control: Any = SimpleNamespace(should_log=False, should_save=False, should_training_stop=False)
        callback.on_step_end(cast(Any, None), state, control)
        if control.should_save:
            assert control.should_log, "the loss is checked before it"
            callback.on_save(cast(Any, SimpleNamespace(output_dir="")), state, control, model=torch.nn.Linear(1, 1))
            saves.append(now)
    assert saves == saved_at


def test_the_peak_of_memory_is_what_was_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    run, state = Run(), SimpleNamespace(global_step=1, max_steps=2, epoch=0.5, log_history=[])
    callback = make_callback(run)
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 7)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5)
    callback._report_progress(cast(Any, state))
    assert run.progress is not None
    assert run.progress.gpu_memory_peak_bytes == 7


def test_a_result_fits_into_a_termination_message() -> None:
    problems = [Problem(field=f"spec.dataset.{number}", message="ä" * 900) for number in range(30)]
    encoded = result.encode(PreflightResult(problems=problems, warnings=["w" * 500] * 30))
    assert len(encoded) <= 4096
    parsed = PreflightResult.model_validate_json(encoded)
    assert parsed.problems[0].field == "spec.dataset.0"
    assert "more" in parsed.problems[-1].message
    trained = result.encode(TrainerResult(reason=Reason.TRAINER_ERROR, message="m" * 9000, warnings=["w" * 5000]))
    assert len(trained) <= 4096
    assert TrainerResult.model_validate_json(trained).reason is Reason.TRAINER_ERROR


@pytest.mark.parametrize(
    "text", ["😀", '"', "\x01", "\ud83d"], ids=["four bytes", "escaped", "control", "half a character"]
)
def test_no_text_makes_a_result_too_long(text: str) -> None:
    prefix = f"s3://{'b' * 63}/{'p' * 512}"
    adapter = AdapterStatus(
        uri=f"{prefix}/adapter",
        digest=f"sha256:{'0' * 64}",
        size_bytes=1,
        base_model=text * 300,
        peft_type="LORA",
        target_modules=[f"module_{number}" for number in range(400)],
    )
    oversized = TrainerResult(
        reason=Reason.UPLOAD_FAILED,
        message=text * 5000,
        warnings=[text * 3000] * 40,
        adapter=adapter,
        report=ReportStatus(uri=f"{prefix}/adapter/report.html"),
        checkpoint=CheckpointStatus(uri=f"{prefix}/checkpoints/step-00000001", step=1, saved_at="2026-01-01T00:00:00Z"),
    )
    encoded = result.encode(oversized)
    assert len(encoded) <= 4096
    parsed = TrainerResult.model_validate_json(encoded)
    assert parsed.reason is Reason.UPLOAD_FAILED
    assert parsed.message.endswith("…")
    assert parsed.checkpoint == oversized.checkpoint
    assert parsed.adapter is not None
    assert (parsed.adapter.uri, parsed.adapter.digest) == (adapter.uri, adapter.digest), "an address is no use in part"
    problem = Problem(field="f" * 3000, message=text * 3000)
    decoded = PreflightResult.model_validate_json(result.encode(PreflightResult(problems=[problem] * 30)))
    assert len(result.encode(PreflightResult(problems=[problem] * 30))) <= 4096
    assert "more, see the pod's log" in decoded.problems[-1].message


def test_linear_modules_are_distinguished_from_embeddings_and_heads() -> None:
    tensors = {
        "transformer.wte.weight": Tensor("F32", (100, 8)),
        "transformer.wpe.weight": Tensor("F32", (32, 8)),
        "transformer.h.10.attn.c_attn.weight": Tensor("F32", (8, 24)),
        "transformer.h.2.attn.c_attn.weight": Tensor("F32", (8, 24)),
        "transformer.h.2.attn.c_attn.bias": Tensor("F32", (24,)),
        "transformer.ln_f.weight": Tensor("F32", (8,)),
        "model.embed_tokens.weight": Tensor("F32", (100, 8)),
        "model.word_embeddings.weight": Tensor("F32", (100, 8)),
        "lm_head.weight": Tensor("F32", (100, 8)),
    }
    linear = modules.list_linear_modules(tensors)
    assert list(linear) == ["transformer.h.2.attn.c_attn", "transformer.h.10.attn.c_attn"]
    chosen = targets.select_modules(list(linear), Lora(target_modules=["attn.c_attn"]), "lora", "gpt2")
    assert modules.count_lora_parameters(linear, chosen, Lora(rank=4)) == 2 * 4 * (8 + 24)
    for missing, message in (("attn", "no linear module named attn; it has"), ("lm_head", "is the output head")):
        with pytest.raises(targets.TargetError, match=message):
            targets.select_modules(list(linear), Lora(target_modules=["c_attn", missing]), "lora", "gpt2")


@pytest.fixture
def prepare(base_model: Path, tmp_path: Path) -> Callable[..., dataset.Examples]:
    """Make examples of a file's text."""
    tokenizer = load_tokenizer(base_model)

    def make(text: str, name: str = "train.jsonl", max_length: int = 48, **source: Any) -> dataset.Examples:
        path = tmp_path / name
        path.write_text(text)
        spec = DatasetSource.model_validate({"uri": f"configmap://data/{name}"} | source)
        inputs = Inputs(base_model, None, LocalData(spec.uri, (path,)), None)
        return dataset.prepare_dataset(
            token_cache.DatasetRequest(spec, "sft", max_length, 1, 200), inputs, tokenizer, tmp_path / "tokens"
        )

    return make


def sequences(examples: dataset.Examples) -> list[dataset.Example]:
    """Return the training sequences."""
    return [dataset.Example(row["input_ids"], row["labels"]) for row in examples.train]


def learned(example: dataset.Example, base_model: Path) -> str:
    """Return the text that the loss looks at."""
    tokenizer = load_tokenizer(base_model)
    return str(tokenizer.decode([label for label in example.labels if label != IGNORED]))


def test_only_the_completion_is_learned(prepare: Callable[..., dataset.Examples], base_model: Path) -> None:
    examples = prepare(jsonl(ROWS))
    assert (len(examples.train), len(examples.held_out)) == (36, 4)
    for example in sequences(examples):
        assert learned(example, base_model).startswith("After ")
        assert learned(example, base_model).endswith(".<|end|>")


def test_only_the_assistants_turns_are_learned(prepare: Callable[..., dataset.Examples], base_model: Path) -> None:
    examples = prepare(jsonl(CHATS[:1] * 3), max_length=100)
    assert learned(sequences(examples)[0], base_model) == "1.<|end|>2, of course.<|end|>"


def test_a_template_that_hides_the_turns_is_refused_unless_whole_conversations_are_learned(
    base_model: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(base_model)
    tokenizer.chat_template = "{% for m in messages %}{% if loop.last %}[last]{% endif %}{{ m['content'] }}{% endfor %}"
    path = tmp_path / "chats.jsonl"
    path.write_text(jsonl(CHATS))

    def make(**source: Any) -> dataset.Examples:
        spec = DatasetSource.model_validate({"uri": "configmap://data/chats.jsonl"} | source)
        request = token_cache.DatasetRequest(spec, "sft", 100, 1, 200)
        return dataset.prepare_dataset(
            request, Inputs(base_model, None, LocalData(spec.uri, (path,)), None), tokenizer, tmp_path / "tokens"
        )

    with pytest.raises(Failure, match="cannot be found in the text") as caught:
        make()
    assert (caught.value.reason, caught.value.field) == (Reason.DATASET_INVALID, "spec.dataset.assistantOnlyLoss")
    assert make(assistantOnlyLoss=False).counts.whole_conversation == len(CHATS)


def test_what_is_cut_or_left_out_is_counted(prepare: Callable[..., dataset.Examples]) -> None:
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b " * 200},
        {"prompt": "a " * 200, "completion": "b"},
        {"prompt": "a", "completion": " "},
        {"prompt": "", "completion": "b"},
    ]
    examples = prepare(jsonl(rows), max_length=16)
    assert (examples.counts.rows, examples.counts.truncated, examples.counts.dropped, examples.counts.empty) == (
        5,
        2,
        1,
        1,
    )
    assert examples.warnings[:1] == [
        "of 5 rows: 2 cut to maxLength 16 (772 tokens cut off), 1 left out because nothing was left to learn from, "
        "1 left out because they are empty"
    ]
    assert max(len(example.input_ids) for example in sequences(examples) + examples.held_out) == 16


def test_plain_text_is_cut_into_whole_blocks(prepare: Callable[..., dataset.Examples], base_model: Path) -> None:
    text = "".join(f"Line {number} of the play.\n" for number in range(300))
    examples = prepare(text, "play.txt", max_length=32, validation={"fraction": 0.25})
    assert len(examples.held_out) == round(0.25 * (len(examples.train) + len(examples.held_out)))
    lengths = {len(example.input_ids) for example in sequences(examples) + examples.held_out}
    assert max(lengths) == 32
    tokenizer = load_tokenizer(base_model)
    for example in sequences(examples):
        assert tokenizer.decode(example.input_ids) in text
    assert prepare(text, "play.txt", max_length=32, maxSamples=7).counts.tokens <= 7 * 32


def test_nothing_to_learn_from_is_refused(prepare: Callable[..., dataset.Examples]) -> None:
    with pytest.raises(Failure) as caught:
        prepare(jsonl([{"prompt": "a " * 200, "completion": "b"}]), max_length=16)
    assert caught.value.reason is Reason.DATASET_INVALID
    assert "no row that the loss can learn from" in caught.value.message


@pytest.mark.parametrize(
    ("precision", "gpu", "bf16", "expected"),
    [
        ("auto", True, True, "bf16"),
        ("auto", True, False, "fp16"),
        ("auto", False, False, "fp32"),
        ("bf16", False, False, "bf16"),
        ("fp32", True, False, "fp32"),
    ],
    ids=["Ampere", "T4 and V100", "a CPU", "a CPU computes bf16", "as asked"],
)
def test_the_precision_is_what_the_device_has(
    monkeypatch: pytest.MonkeyPatch, precision: str, gpu: bool, bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    assert device.choose_precision(Training.model_validate({"precision": precision})) == expected


@pytest.mark.parametrize(("precision", "gpu"), [("fp16", False), ("bf16", True)])
def test_a_precision_that_the_device_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, precision: str, gpu: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(Failure, match=r"fp16 needs a GPU|Tesla T4 has no bf16: choose auto or fp16") as caught:
        device.choose_precision(Training.model_validate({"precision": precision}))
    assert caught.value.field == "spec.training.precision"


@pytest.mark.parametrize(
    ("configured", "ends"),
    [(None, [2]), (2, [2]), ([2, 7], [2, 7]), (5, [2, 5]), ("7", [2]), ([7, "8"], [2, 7])],
    ids=["no configuration", "the same", "several", "another one", "a text", "a text among several"],
)
def test_an_answer_ends_at_each_end_token_of_the_model(configured: Any, ends: list[int]) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=configured))
    assert samples.list_end_tokens(model, SimpleNamespace(eos_token_id=2)) == ends
    assert samples.list_end_tokens(SimpleNamespace(), SimpleNamespace(eos_token_id=None)) == []
