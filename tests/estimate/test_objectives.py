"""The memory of each objective against what TRL's trainer, made as ours is, holds on a CPU during a training step."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.memory import memory
from finetune_api.estimate.objective import PASSES
from finetune_api.finetunejob import FineTuneJobSpec, Objective
from finetune_trainer.methods.adapted_model import add_adapter, to_float32
from finetune_trainer.methods.peft_config import BaseInfo
from finetune_trainer.training.objectives import objective_of
from tests.estimate.measure import Storages
from tools.testing.tiny_model import make_tiny_model

BATCH, LENGTH, PROMPT = 2, 128, 32
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class HeldBytes:
    """Bytes that a trainer holds: ``weights`` of the base and all copies, ``peak`` beside them in a training step."""

    weights: int
    peak: int


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("tokenizer")))


def rows(objective: Objective) -> datasets.Dataset:
    """Return rows of which every sequence has LENGTH tokens."""
    prompt, answer = [7] * PROMPT, [8, 9] * ((LENGTH - PROMPT) // 2)
    row: dict[str, Any] = {
        "sft": {"input_ids": prompt + answer, "labels": prompt + answer},
        "kto": {"prompt_ids": prompt, "completion_ids": answer},
    }.get(objective, {"prompt_ids": prompt, "chosen_ids": answer, "rejected_ids": answer[::-1]})
    labels = [{"label": number % 2 == 0} if objective == "kto" else {} for number in range(BATCH)]
    return datasets.Dataset.from_list([row | label for label in labels])


def make_spec(objective: Objective, method: dict[str, Any], **training: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "hf://a/b"},
            "dataset": {"uri": "hf://a/b"},
            "output": {"s3": {"bucket": "bucket"}},
            "objective": objective,
            "method": method,
            "training": {"perDeviceBatchSize": BATCH, "maxLength": LENGTH, **training},
        }
    )


def held(spec: FineTuneJobSpec, vocabulary: int, tokenizer: Any, scratch: Path) -> HeldBytes:
    """Make the trainer of the objective as the trainer image does, and measure its second training step."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SIZES, vocab_size=vocabulary)
    reward = spec.objective == "reward"
    kind: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    if reward:
        config.num_labels = 1
    kind.from_config(config, dtype=torch.bfloat16).save_pretrained(scratch / "base")
    base = kind.from_pretrained(scratch / "base", dtype=torch.bfloat16)
    base.config.use_cache = False
    model = add_adapter(base, spec.method, BaseInfo(Path(), None, total_steps=100, scores=reward))
    objective = objective_of(spec)
    arguments = objective.config(
        output_dir=str(scratch),
        per_device_train_batch_size=BATCH,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=spec.training.gradient_checkpointing == "always",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **objective.settings,
    )
    trainer = objective.trainer(
        model=model, args=arguments, train_dataset=rows(spec.objective), processing_class=tokenizer
    )
    to_float32(trainer.model)
    if arguments.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    trainer.current_gradient_accumulation_steps = 1
    prepared = trainer.accelerator.prepare_model(trainer.model).train()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.training_step(prepared, batch)
    models = [trainer.model, *([trainer.ref_model] if getattr(trainer, "ref_model", None) is not None else [])]
    weights = {weight.data_ptr(): weight for module in models for weight in module.parameters()}
    gradients = [weight.grad for weight in weights.values() if weight.grad is not None]
    buffers = [buffer for module in models for buffer in module.buffers()]
    with Storages([*weights.values(), *gradients, *buffers, *_tensors(batch)]) as storages:
        trainer.training_step(prepared, batch)
    return HeldBytes(sum(weight.nbytes for weight in weights.values()), storages.peak)


def _tensors(batch: dict[str, Any]) -> list[torch.Tensor]:
    return [value for value in batch.values() if isinstance(value, torch.Tensor)]


LORA = {"lora": {"rank": 8}}
CASES: dict[str, tuple[Objective, dict[str, Any], int, str]] = {
    "sft": ("sft", LORA, 350, "never"),
    "dpo": ("dpo", LORA, 350, "never"),
    "dpo recomputing": ("dpo", LORA, 350, "always"),
    "dpo full": ("dpo", {"full": {}}, 350, "never"),
    "dpo bottleneck": ("dpo", {"bottleneck": {}}, 350, "never"),
    "kto": ("kto", LORA, 350, "never"),
    "orpo": ("orpo", LORA, 4000, "never"),
    "orpo recomputing": ("orpo", LORA, 4000, "always"),
    "reward": ("reward", LORA, 350, "never"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_memory_of_an_objective_is_what_its_trainer_holds(case: str, tokenizer: Any, tmp_path: Path) -> None:
    objective, method, vocabulary, checkpointing = CASES[case]
    spec = make_spec(objective, method, gradientCheckpointing=checkpointing, optimizer="adamw_torch_fused")
    held_bytes = held(spec, vocabulary, tokenizer, tmp_path)
    config = json.loads(AutoConfig.for_model("llama", **SIZES, vocab_size=vocabulary).to_json_string())
    parts = memory(architecture_of(config), spec.method, spec.training, objective=objective)
    assert parts.weights + parts.adapter + parts.reference == pytest.approx(held_bytes.weights, rel=0.01)
    expected = parts.activations + parts.loss
    if PASSES[objective].head == "tiles":
        # a CPU has no kernel that works in the tile itself: it makes copies in fp32
        expected += 5 * 4 * PASSES[objective].sequences * BATCH * LENGTH * vocabulary
    assert expected == pytest.approx(held_bytes.peak, rel=0.1), held_bytes


def test_ddp_needs_no_memory_beside_the_gradients(tmp_path: Path) -> None:
    """They are views of its buckets, as the trainer makes it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(8)))
        wrapped = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        inputs = torch.ones(2, 256)
        for _ in range(2):  # the buckets are made anew in the order of the first backward pass
            wrapped(inputs).sum().backward()
            wrapped.zero_grad(set_to_none=False)
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        with Storages([*model.parameters(), *gradients, inputs]) as storages:
            wrapped(inputs).sum().backward()
        storages_of = [weight.grad.untyped_storage() for weight in model.parameters() if weight.grad is not None]
        buckets = {storage.data_ptr(): storage.nbytes() for storage in storages_of}
    finally:
        torch.distributed.destroy_process_group()
    assert sum(buckets.values()) == 8 * 256 * 256 * 4
    assert storages.peak < 3 * 256 * 256 * 4, "beside the buckets there is the gradient of the layer that runs"
