"""The batch that the trainer chooses: what fills each GPU of the table, and as many steps as the data is worth."""

from typing import Any

import pytest

from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.checkpointing import TIGHT, resolve_checkpointing
from finetune_api.estimate.defaults import (
    FILLING_TOKENS,
    MicroStep,
    choose_micro_step,
    choose_sequences,
    explain_micro_step,
    split_step,
)
from finetune_api.estimate.gpus import GPUS, gpu_named
from finetune_api.estimate.memory import job_memory
from finetune_api.finetunejob import FineTuneJobSpec
from tools.testing.llama_8b import LLAMA_8B

SMALL: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
LARGE: dict[str, Any] = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
MODELS = {"0.5B": SMALL, "8B": LLAMA_8B, "70B": LARGE}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {}},
    "qlora": {"qlora": {}},
    "full": {"full": {}},
    "prefix": {"prefixTuning": {"numVirtualTokens": 20}},
}


def spec(training: dict[str, Any] | None = None, gpus: int = 1, **more: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "hf://org/model"},
            "dataset": {"uri": "configmap://data/rows.jsonl"},
            "output": {"s3": {"bucket": "adapters"}},
            "resources": {"gpusPerNode": gpus},
            "training": training or {},
            **more,
        }
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_on_each_gpu_the_largest_useful_micro_step_that_fits_is_chosen(model: str, method: str, objective: str) -> None:
    architecture, job = architecture_of(MODELS[model]), spec(method=METHODS[method], objective=objective)
    before = 0
    for gpu in sorted(GPUS, key=lambda gpu: gpu.bytes):
        chosen = choose_micro_step(job, architecture, gpu.bytes, 16)
        trained = job.model_copy(update={"training": split_step(job.training, chosen.sequences, 16)})
        assert trained.training.sequences_per_step(1) == 16
        needed = job_memory(architecture, resolve_checkpointing(trained, architecture, gpu.bytes)).total
        assert chosen.bytes == needed, "the trainer decides on recomputation with the same estimate"
        assert chosen.fits == (needed <= TIGHT * gpu.bytes)
        assert chosen.fits or chosen.sequences == 1, "what fits nowhere is left to the ladder"
        tokens = chosen.sequences * job.training.max_length * (1 if objective == "sft" else 2)
        assert tokens <= FILLING_TOKENS
        if before:
            assert chosen.fits, "what fits on a smaller GPU fits on a larger one"
        before = before or int(chosen.fits)


@pytest.mark.parametrize(
    ("gpu", "model", "method", "length", "sequences", "recomputes"),
    [
        ("H200", "8B", "lora", 1024, 8, False),
        ("H100", "8B", "lora", 1024, 4, False),
        ("H100", "8B", "lora", 4096, 1, False),
        ("H100", "0.5B", "lora", 512, 16, False),
        ("H100", "70B", "qlora", 1024, 8, True),
        ("L4", "8B", "lora", 1024, 4, True),
        ("L4", "8B", "qlora", 1024, 8, True),
        ("T4", "8B", "lora", 1024, 1, True),
        ("T4", "0.5B", "lora", 1024, 4, False),
    ],
)
def test_choices_that_people_know(
    gpu: str, model: str, method: str, length: int, sequences: int, recomputes: bool
) -> None:
    job, memory = spec({"maxLength": length}, method=METHODS[method]), gpu_named(gpu).bytes
    architecture = architecture_of(MODELS[model])
    chosen = choose_micro_step(job, architecture, memory, 16)
    assert chosen.sequences == sequences
    trained = job.model_copy(update={"training": split_step(job.training, sequences, 16)})
    resolved = resolve_checkpointing(trained, architecture, memory)
    assert (resolved.training.gradient_checkpointing == "always") == recomputes


@pytest.mark.parametrize("mode", ["always", "never"])
def test_recomputation_that_the_user_sets_is_kept(mode: str) -> None:
    job, architecture = spec({"gradientCheckpointing": mode}), architecture_of(LLAMA_8B)
    chosen = choose_micro_step(job, architecture, gpu_named("L4").bytes, 16)
    trained = job.model_copy(update={"training": split_step(job.training, chosen.sequences, 16)})
    assert chosen.bytes == job_memory(architecture, trained).total
    assert chosen.sequences == (4 if mode == "always" else 1)


@pytest.mark.parametrize(
    ("training", "gpus", "rows", "sequences"),
    [
        ({}, 1, 100_000, 16),
        ({"maxLength": 256}, 1, 100_000, 32),
        ({}, 4, 100_000, 32),
        ({}, 8, 100_000, 32),
        ({}, 16, 100_000, 32),
        ({"maxLength": 8192}, 8, 100_000, 16),
        ({}, 3, 100_000, 24),
        ({}, 1, 500, 4),
        ({"epochs": 3}, 1, 500, 8),
        ({}, 1, 20, 1),
        ({}, 8, 20, 8),
        ({"maxSteps": 1000}, 1, 2000, 2),
        ({"maxSteps": 10}, 1, 200, 16),
    ],
)
def test_a_step_has_as_many_sequences_as_the_data_is_worth(
    training: dict[str, Any], gpus: int, rows: int, sequences: int
) -> None:
    assert choose_sequences(spec(training, gpus), rows) == sequences


def test_objective_kto_never_takes_one_row_at_a_time() -> None:
    job = spec(objective="kto", dataset={"uri": "configmap://data/rows.jsonl"})
    assert choose_sequences(job, 3) == 2
    assert choose_micro_step(job, architecture_of(LARGE), gpu_named("T4").bytes, 8).sequences == 2


def test_a_choice_says_why() -> None:
    job = spec()
    text = explain_micro_step(job, MicroStep(8, 20 * 2**30, fits=True), 40 * 2**30)
    assert text == "a micro-step of at most 8192 tokens needs by the estimate 20.0 of the GPU's 40.0 GiB"
    assert "may run out of memory" in explain_micro_step(job, MicroStep(1, 2**40, fits=False), 2**30)
