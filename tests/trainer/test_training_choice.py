"""What a job leaves unset is chosen for the GPU, said, repeated by the next attempt, and reduced by the ladder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.estimate import defaults
from finetune_api.estimate.memory import GIB
from finetune_api.estimate.modules import NotCountedError
from finetune_api.finetunejob import TrainingChoice
from finetune_api.messages import TrainerResult
from finetune_trainer.models import device, packed_attention
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.training import choice as choice_module
from finetune_trainer.training import fit as fit_module
from finetune_trainer.training import train as training_module
from tests.trainer.second_process import second_process
from tests.trainer.test_out_of_memory import small_device
from tools.testing.trainer_jobs import Workbench, jsonl, train, train_until

TRAINING: dict[str, Any] = {"maxSteps": 4, "maxLength": 48, "learningRate": 2e-3}
ROWS = [{"prompt": f"{number}?", "completion": f" {number + 1}."} for number in range(160)]
GPU: dict[str, Any] = {"gpusPerNode": 1}
EXACT = {"lora": {"rank": 4, "alpha": 8}}


@pytest.fixture(autouse=True)
def large_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer believes that its device has the memory of a large GPU."""
    has_memory(monkeypatch, 80 * GIB)


def has_memory(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(device, "training_bytes", lambda: size)


def record_attention(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record for each training whether its model attends to packed examples one by one."""
    attends, genuine = list[bool](), fit_module.fit

    def fit(*arguments: Any, model: Any, **named: Any) -> Any:
        attends.append(packed_attention.is_installed(model))
        return genuine(*arguments, model=model, **named)

    monkeypatch.setattr(training_module, "fit", fit)
    return attends


def made(bench: Workbench, **training: Any) -> Settings:
    bench.dataset(jsonl(ROWS))
    return bench.settings(method=EXACT, training=TRAINING | training, resources=GPU)


def succeeded(settings: Settings) -> TrainerResult:
    result, _ = train(settings)
    assert result.reason == "Succeeded", result.message
    return result


def chosen(result: TrainerResult) -> TrainingChoice:
    assert result.training_choice is not None
    return result.training_choice


def test_packing_and_batch_are_chosen_and_said_and_train_as_if_the_user_had_set_them(
    workbench: Callable[[], Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    attends = record_attention(monkeypatch)
    unset, explicit = workbench(), workbench()
    result = succeeded(made(unset))
    choice = chosen(result)
    assert (choice.packing, choice.per_device_batch_size, choice.gradient_accumulation_steps) == (True, 4, 1)
    assert choice.why == [
        "packing is on: the model is proved to keep packed examples apart",
        choice.why[1],
        "gradientAccumulationSteps 1: a step has 4 packed rows of 27",
    ]
    assert choice.why[1].startswith("perDeviceBatchSize 4: a micro-step of at most 192 tokens needs by the estimate ")
    page = unset.read("team/job/adapter/report.html").decode()
    assert page.count("chosen for the GPU") == 3
    assert "the model is proved to keep packed examples apart" in page
    values = {"packing": True, "perDeviceBatchSize": 4, "gradientAccumulationSteps": 1}
    assert succeeded(made(explicit, **values)).training_choice is None
    assert unset.weights() == explicit.weights()
    assert attends == [True, True], "packed examples are attended to one by one"


@pytest.mark.parametrize("training", [{"perDeviceBatchSize": 3}, {"gradientAccumulationSteps": 3}])
def test_a_batch_that_the_user_sets_is_taken_as_it_is(bench: Workbench, training: dict[str, Any]) -> None:
    result, run = train(made(bench, **training))
    assert result.training_choice is None
    assert run.derived_settings["sequences per step"] == "3"


def test_packing_that_the_user_turns_off_stays_off(bench: Workbench) -> None:
    choice = chosen(succeeded(made(bench, packing=False)))
    assert (choice.packing, choice.per_device_batch_size) == (None, 32)


@pytest.mark.parametrize("gpus", [0, 1])
def test_without_a_gpu_of_known_memory_the_defaults_stay(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    if gpus:
        has_memory(monkeypatch, None)
    result, run = train(bench.settings(training=TRAINING, resources={"gpusPerNode": gpus}))
    assert (result.reason, result.training_choice) == ("Succeeded", None)
    assert run.derived_settings["sequences per step"] == "1"


def test_without_an_estimate_the_defaults_stay(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise NotCountedError("there is no closed form")

    monkeypatch.setattr(choice_module, "choose_micro_step", refuse)
    attends = record_attention(monkeypatch)
    result, run = train(made(bench))
    assert (result.reason, result.training_choice) == ("Succeeded", None)
    assert run.derived_settings["sequences per step"] == "1"
    assert attends == [False], "packing was proved, and is not used"


def test_objective_kto_gets_two_rows_where_the_memory_is_not_known(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory(monkeypatch, None)
    bench.dataset(jsonl([row | {"label": number % 2 == 0} for number, row in enumerate(ROWS[:20])]))
    result = succeeded(bench.settings(objective="kto", training=TRAINING, resources=GPU))
    assert chosen(result).per_device_batch_size == 2


def test_the_ladder_reduces_what_was_chosen(
    workbench: Callable[[], Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = workbench(), workbench()
    succeeded(made(whole, packing=False))
    small_device(monkeypatch, lambda _, inputs: inputs["input_ids"].shape[0] <= 8, 2)
    result = succeeded(made(pieces, packing=False))
    assert result.resumed_from_step == 2, "no step is lost"
    assert chosen(result).per_device_batch_size == 32, "what was chosen is said apart from what the ladder changed"
    assert [str(change) for change in result.adjustments or ()] == [
        "training.perDeviceBatchSize 32 → 8",
        "training.gradientAccumulationSteps 1 → 4",
    ]
    torch.testing.assert_close(loaded(pieces), loaded(whole), rtol=2e-3, atol=2e-5)


def test_the_next_attempt_on_a_smaller_gpu_takes_the_same_steps(
    workbench: Callable[[], Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = workbench(), workbench()
    succeeded(made(whole))
    assert train_until(made(pieces), 2).reason == "Preempted"
    has_memory(monkeypatch, GIB)
    monkeypatch.setattr(defaults, "SEQUENCES", 2)  # another version of the trainer
    monkeypatch.setattr(defaults, "MOST_SEQUENCES", 2)
    result = succeeded(made(pieces))
    choice = chosen(result)
    assert (result.resumed_from_step, choice.packing) == (2, True)
    assert (choice.per_device_batch_size, choice.gradient_accumulation_steps) == (1, 4)
    assert "as in the checkpoints of this job" in choice.why[-1]
    torch.testing.assert_close(loaded(pieces), loaded(whole), rtol=2e-3, atol=2e-5)


def test_what_the_operator_hands_on_is_kept_and_shown(bench: Workbench) -> None:
    choice = TrainingChoice(packing=False, per_device_batch_size=4, gradient_accumulation_steps=2, why=["it was so"])
    result = succeeded(made(bench).with_choice(choice))
    assert result.training_choice == choice
    assert bench.read("team/job/adapter/report.html").decode().count("chosen for the GPU") == 3


def test_a_model_that_mixes_packed_examples_is_trained_without_packing(
    bench: Workbench, base_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, BloomConfig, BloomForCausalLM

    model = tmp_path / "bloom"
    shutil.copytree(base_model, model, ignore=shutil.ignore_patterns("model*", "config.json"))
    known = AutoConfig.from_pretrained(base_model)
    torch.manual_seed(1)
    BloomForCausalLM(
        BloomConfig(vocab_size=known.vocab_size, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3)
    ).save_pretrained(model)
    (bench.mounts / "claims" / "mixing").symlink_to(tmp_path)
    bench.model_uri = f"pvc://mixing/{model.name}"
    choice = chosen(succeeded(made(bench)))
    assert choice.packing is False
    assert "'bloom' lets packed examples attend to one another" in choice.why[0]


def test_long_examples_are_not_packed(bench: Workbench) -> None:
    choice = chosen(succeeded(made(bench, maxLength=8)))
    assert (choice.packing, choice.why[0]) == (
        False,
        "packing is off: the examples are about as long as maxLength already",
    )


def test_two_processes_choose_the_same(bench: Workbench) -> None:
    bench.dataset(jsonl(ROWS))
    with second_process():
        result = succeeded(bench.settings(method=EXACT, training=TRAINING, resources={"gpusPerNode": 2}))
    choice = chosen(result)
    assert (choice.packing, choice.per_device_batch_size) == (True, 2)


def loaded(bench: Workbench) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(bench.weights())
