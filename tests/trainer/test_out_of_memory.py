"""A job that does not fit is trained with less memory, continues where it stopped, and learns the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
import torch
import transformers
from safetensors.torch import load_file

from finetune_api.messages import TrainerResult
from finetune_api.methods import Method, Qlora
from finetune_api.reasons import Reason
from finetune_cli.run import explain_end
from finetune_trainer import attempt, recipe
from finetune_trainer.data.sources import Inputs
from finetune_trainer.evaluation.likelihood import compute_logits
from finetune_trainer.models import device, loading, streaming
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session.session import Session
from finetune_trainer.training.row_order import LongestFirst, measure_lengths
from tools.testing.trainer_jobs import Workbench, jsonl, train

TRAINING: dict[str, Any] = {
    "epochs": 2,
    "perDeviceBatchSize": 8,
    "maxLength": 48,
    "learningRate": 2e-3,
    "scheduler": "cosine",
}
PAIRS = [
    {"prompt": f"What follows {number}?\n", "chosen": f"{number + 1}, I think.", "rejected": "No idea."}
    for number in range(40)
]


def small_device(monkeypatch: pytest.MonkeyPatch, fits: Callable[[Any, dict[str, Any]], bool], after: int) -> None:
    """From the step after ``after`` on, a micro-step that does not fit ends as it does on a GPU."""
    genuine = transformers.Trainer.training_step

    def step(self: Any, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> torch.Tensor:
        if self.state.global_step >= after and not fits(model, inputs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return genuine(self, model, inputs, *more, **named)

    monkeypatch.setattr(transformers.Trainer, "training_step", step)


def trained(settings: Settings) -> TrainerResult:
    result, _ = train(settings)
    return result


def tensors(bench: Workbench, directory: Path) -> dict[str, torch.Tensor]:
    path = directory / "weights.safetensors"
    path.write_bytes(bench.weights())
    return load_file(path)


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_smaller_batch_continues_from_the_checkpoint_and_learns_the_same(
    workbench: Callable[[], Workbench], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, objective: str
) -> None:
    # Preference objectives weigh the pairs of an epoch's last, incomplete step by micro-step: whole steps avoid it.
    limits = {} if objective == "sft" else {"epochs": None, "maxSteps": 4}
    spec: dict[str, Any] = {
        "method": {"lora": {"rank": 4, "alpha": 8}},
        "objective": objective,
        "training": TRAINING | limits,
    }
    benches = workbench(), workbench()
    if objective == "dpo":
        for bench in benches:
            bench.dataset(jsonl(PAIRS))
    uninterrupted, interrupted = benches
    assert trained(uninterrupted.settings(**spec)).reason == "Succeeded"

    small_device(
        monkeypatch, lambda _, inputs: next(iter(inputs.values())).shape[0] <= (2 if objective == "sft" else 4), 3
    )
    result = trained(interrupted.settings(**spec))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 3), "no step is lost"
    expected, actual = tensors(uninterrupted, tmp_path), tensors(interrupted, tmp_path)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=2e-3, atol=2e-5)
    page = interrupted.read("team/job/adapter/report.html").decode()
    assert "training.perDeviceBatchSize 8 → " in page
    assert "out of memory" in page


def test_gradient_checkpointing_is_turned_on_in_mid_run_and_changes_no_bit(
    workbench: Callable[[], Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TRAINING | {"perDeviceBatchSize": 1, "epochs": None, "maxSteps": 6}
    spec: dict[str, Any] = {"method": {"lora": {"rank": 4, "dropout": 0.2}}, "training": training}
    uninterrupted, interrupted = workbench(), workbench()
    assert trained(uninterrupted.settings(**spec)).reason == "Succeeded"
    small_device(monkeypatch, lambda model, _: bool(model.is_gradient_checkpointing), 3)
    result = trained(interrupted.settings(**spec))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 3), "no step is lost"
    assert interrupted.weights() == uninterrupted.weights()


def test_an_optimizer_that_does_not_fit_leaves_no_step_to_save(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, calls = torch.optim.AdamW.step, list[int]()

    def step(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return genuine(*arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    result = trained(bench.settings(training=TRAINING))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 2), "the weights of step 3 may be changed in part"


def test_a_lack_of_memory_that_transformers_does_not_name_is_recognised(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [0]

    def convert(*_: Any, **__: Any) -> Any:
        failures[0] += 1
        raise RuntimeError("We encountered some issues during automatic conversion of the weights.")

    monkeypatch.setattr(device, "count_full", lambda: failures[0])
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", convert)
    result = trained(bench.settings())
    assert result.reason == Reason.OUT_OF_MEMORY
    assert "while the model was loaded" in result.message


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_longest_rows_are_the_first_step_and_each_row_is_taken_once(epoch: int) -> None:
    lengths = [3, 9, 1, 7, 7, 2, 8, 4]
    sampler = LongestFirst(lengths, 3, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(8))
    assert order == list(sampler), "a resumed epoch is the same"
    assert (sorted(lengths[row] for row in order[:3]) == [7, 8, 9]) == (epoch == 0)
    if epoch == 0:
        assert [lengths[row] for row in order[:2]] == [9, 8], "a smaller batch meets the longest row first too"


def test_the_length_of_a_row_is_that_of_its_longer_answer() -> None:
    texts = datasets.Dataset.from_list([{"input_ids": [1] * 3, "labels": [1] * 3}, {"input_ids": [], "labels": []}])
    assert measure_lengths(texts) == [3, 0]
    pairs = datasets.Dataset.from_list([{"prompt_ids": [1], "chosen_ids": [1] * 5, "rejected_ids": [1] * 2}])
    assert measure_lengths(pairs) == [6]
    assert measure_lengths(texts.select([1, 0])) == [0, 3]
    lengths = [number % 7 for number in range(1030)]
    dataset = datasets.Dataset.from_list([{"input_ids": [1] * length} for length in lengths])
    assert measure_lengths(dataset) == lengths, "more than one batch"


def test_what_never_fits_ends_with_what_was_tried(
    workbench: Callable[[], Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_device(monkeypatch, lambda _, __: False, 0)
    settings, adjusted, fetches = workbench().settings(), list[int](), list[Settings]()
    genuine, fetch = recipe.train_adapter, attempt.fetch

    def counted(session: Session) -> TrainerResult:
        adjusted.append(len(session.settings.adjustments))
        return genuine(session)

    def fetched(smaller: Settings) -> Inputs:
        fetches.append(smaller)
        return fetch(smaller)

    monkeypatch.setattr(recipe, "train_adapter", counted)
    monkeypatch.setattr(attempt, "fetch", fetched)
    result = explain_end(settings, trained(settings))
    assert result.reason == Reason.OUT_OF_MEMORY
    assert adjusted == [0, 2, 3]
    assert len(fetches) == 1, "what was downloaded stays"
    assert [str(change) for change in result.adjustments or ()] == [
        "training.perDeviceBatchSize 2 → 1",
        "training.gradientAccumulationSteps 2 → 4",
        "training.gradientCheckpointing auto → always",
    ]
    assert "training.perDeviceBatchSize is 1, training.gradientAccumulationSteps is 4" in result.message
    assert "allow quantize in failurePolicy.outOfMemory" in result.message


def test_a_base_that_is_too_large_for_the_gpu_as_it_is_served_is_streamed(
    workbench: Callable[[], Workbench], loads_on_full_gpu: list[str]
) -> None:
    bench = workbench()
    result = trained(bench.settings())
    assert result.reason == "Succeeded", result.message
    assert loads_on_full_gpu == ["gpu", "gpu", "streamed"]


def test_an_adapter_on_streamed_layers_answers_as_on_resident_ones(base_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)

    adapted = get_peft_model(base(), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path))
    texts = [list(range(5, 25)), list(range(30, 41))]
    streamed = streaming.stream_layers(base())
    assert streamed.device.type == "meta"
    for logits, expected in zip(compute_logits(streamed, texts, 64), compute_logits(base(), texts, 64), strict=True):
        assert torch.equal(logits, expected)
    loaded = streaming.stream_layers(PeftModel.from_pretrained(streaming.stop_streaming(streamed), str(tmp_path)))
    for logits, expected in zip(compute_logits(loaded, texts, 64), compute_logits(adapted, texts, 64), strict=True):
        assert torch.equal(logits, expected)


@pytest.mark.parametrize("quantised", [True, False])
def test_weights_in_4_bits_count_in_full_when_the_serving_layout_is_chosen(base_model: Path, quantised: bool) -> None:
    quantization = loading.make_quantization_config(Method(qlora=Qlora()), "fp32") if quantised else None
    loaded = loading.load_base(base_model, torch.float32, quantization)
    assert sum(loading.count_weights(weight) for weight in loaded.parameters()) == sum(
        weight.numel() for weight in loading.load_base(base_model, torch.float32).parameters()
    )
