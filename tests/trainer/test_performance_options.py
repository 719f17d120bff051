"""Performance options of a job: recomputing only on a GPU that is too small, the fused optimizer only on a GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune_api.finetunejob import FineTuneJob, FineTuneJobSpec, Training
from finetune_api.reasons import Reason
from finetune_trainer.methods import adapted_model
from finetune_trainer.models import device, loading, performance
from tests.api.objects import FINETUNE_JOB, changed
from tools.testing.llama_8b import LLAMA_8B
from tools.testing.trainer_jobs import Workbench, train, train_until

GIB = 2**30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make this machine one with a GPU of so many bytes."""

    def make(size: int) -> None:
        monkeypatch.setattr(device, "has_gpu", lambda: True)
        monkeypatch.setattr(device, "gpu_bytes", lambda: size)

    return make


def spec(**changes: Any) -> FineTuneJobSpec:
    training = {"perDeviceBatchSize": 4, "maxLength": 2048, "gradientCheckpointing": "auto"}
    fields = {"spec.method": {"lora": {}}, "spec.training": training}
    job = changed(FINETUNE_JOB, fields | {f"spec.{key}": value for key, value in changes.items()})
    return FineTuneJob.of(job | {"metadata": job["metadata"] | {"uid": "1", "namespace": "team"}}).spec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a directory with the config.json of Llama-3.1-8B."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return tmp_path


def test_a_gpu_that_is_large_enough_recomputes_nothing(gpu: Any, model: Path) -> None:
    gpu(139 * GIB)
    assert not performance.uses_gradient_checkpointing(spec(), model)
    gpu(39 * GIB)
    assert performance.uses_gradient_checkpointing(spec(), model)


def test_the_users_word_goes_before_the_estimate(gpu: Any, model: Path) -> None:
    gpu(39 * GIB)
    assert not performance.uses_gradient_checkpointing(spec(**{"training.gradientCheckpointing": "never"}), model)
    gpu(139 * GIB)
    assert performance.uses_gradient_checkpointing(spec(**{"training.gradientCheckpointing": "always"}), model)


def test_it_stays_off_where_it_does_not_go_and_is_on_where_nothing_is_known(gpu: Any, model: Path) -> None:
    gpu(39 * GIB)
    assert not performance.uses_gradient_checkpointing(spec(method={"prefixTuning": {}}), model)
    (model / "config.json").write_text(json.dumps(LLAMA_8B | {"model_type": "mamba"}))
    assert performance.uses_gradient_checkpointing(spec(), model)
    assert not performance.uses_gradient_checkpointing(spec(method={"prefixTuning": {}}), model)


def test_the_fused_optimizer_is_taken_on_a_gpu(gpu: Any) -> None:
    assert performance.choose_optimizer(Training()) == "adamw_torch"
    gpu(GIB)
    assert performance.choose_optimizer(Training()) == "adamw_torch_fused"
    assert performance.choose_optimizer(Training(optimizer="adamw_torch")) == "adamw_torch"


def test_compiling_is_for_long_runs_on_a_gpu(gpu: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not performance.uses_compile(spec(), model, 100_000), "there is no GPU"
    gpu(139 * GIB)
    monkeypatch.setattr(performance, "find_compiler", lambda: "/usr/bin/gcc")
    assert performance.uses_compile(spec(), model, 100_000)
    assert not performance.uses_compile(spec(), model, 100)
    assert not performance.uses_compile(spec(method={"dora": {}}), model, 100_000)
    assert not performance.uses_compile(spec(**{"training.compile": "never"}), model, 100_000)
    monkeypatch.setattr(performance, "find_compiler", lambda: None)
    assert not performance.uses_compile(spec(), model, 100_000)


def test_compiling_without_a_compiler_is_refused(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    result, _ = train(bench.settings(training={"maxSteps": 2, "compile": "always"}))
    assert result.reason is Reason.SPEC_INVALID
    assert "spec.training.compile" in result.message
    assert "g++" in result.message


@pytest.mark.exhaustive  # a compiler works for minutes
def test_a_compiled_run_learns_the_same_and_resumes_bit_identical(workbench: Callable[[], Workbench]) -> None:
    if performance.find_compiler() is None:
        return  # the refusal above is all that such a machine can show
    training = {"maxSteps": 3, "maxLength": 48, "perDeviceBatchSize": 2, "learningRate": 2e-3}
    compiled = training | {"compile": "always"}
    plain, uninterrupted, interrupted = workbench(), workbench(), workbench()
    train(plain.settings(training=training))
    result, run = train(uninterrupted.settings(training=compiled))
    assert (result.reason, run.derived_settings["compiled"]) == ("Succeeded", "yes"), result.message
    assert losses(uninterrupted)[0] == pytest.approx(losses(plain)[0], rel=1e-5), (
        "dropout draws other numbers, but it acts from the second step on"
    )
    assert train_until(interrupted.settings(training=compiled), 1).reason == "Preempted"
    result, _ = train(interrupted.settings(training=compiled))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 1)
    assert interrupted.weights() == uninterrupted.weights()


def test_without_casts_that_autocast_makes_anyway_no_bit_is_another_and_less_is_kept(
    workbench: Callable[[], Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {
        "method": {"lora": {"rank": 4}},
        "training": {"maxSteps": 4, "maxLength": 48, "perDeviceBatchSize": 2, "precision": "bf16"},
        "evaluation": {"everySteps": 2, "samples": 0},
    }
    saved_bytes: list[int] = []
    genuine = transformers.Trainer.training_step

    def step(self: Any, model: Any, *inputs: Any, **named: Any) -> torch.Tensor:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = genuine(self, model, *inputs, **named)
        saved_bytes.append(sum(sizes.values()))
        return loss

    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    without, with_casts = workbench(), workbench()
    result, _ = train(without.settings(**spec))
    assert result.reason == "Succeeded", result.message
    without_casts, saved_bytes = sum(saved_bytes), list[int]()
    monkeypatch.setattr(adapted_model, "needs_no_casts", lambda *_: False)
    train(with_casts.settings(**spec))
    assert without.weights() == with_casts.weights()
    assert losses(without) == losses(with_casts)
    assert without_casts < 0.95 * sum(saved_bytes)


@pytest.mark.parametrize(
    ("options", "precision", "expected"),
    [
        ({}, "bf16", True),
        ({}, "fp16", True),
        ({}, "fp32", False),
        ({"lora_dropout": 0.1}, "bf16", False),
        ({"use_dora": True}, "bf16", False),
    ],
)
def test_casts_are_left_out_where_they_change_nothing(
    base_model: Path, options: dict[str, Any], precision: str, expected: bool
) -> None:
    base = loading.load_base(base_model, torch.bfloat16)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], **options))
    assert adapted_model.needs_no_casts(model, precision) == expected
    assert not adapted_model.needs_no_casts(base, precision)


class Layer(GradientCheckpointingLayer):
    """A layer that may be compiled."""

    def __init__(self) -> None:
        """Create one linear layer."""
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply it."""
        return torch.relu(self.linear(inputs))


def test_layers_that_cannot_be_compiled_run_as_they_are_and_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()

    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("there is no compiler for this GPU")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", no_compiler)
    model, inputs = torch.nn.Sequential(Layer(), Layer()), torch.ones(2, 4)
    expected = model(inputs)
    with performance.compile_layers(model, on=False, required=False) as compilation:
        model(inputs)
    assert compilation.describe() is None
    with performance.compile_layers(model, on=True, required=False) as compilation:
        assert torch.equal(model(inputs), expected)
    assert "could not be compiled and ran as they are" in (compilation.describe() or "")


def losses(bench: Workbench) -> list[float]:
    """Return the loss of each step."""
    lines = (json.loads(line) for line in bench.read("team/job/adapter/metrics.jsonl").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_what_was_chosen_is_in_the_report(bench: Workbench) -> None:
    result, run = train(bench.settings())
    assert result.reason == "Succeeded", result.message
    assert (run.derived_settings["gradient checkpointing"], run.derived_settings["optimizer"]) == ("off", "adamw_torch")
