"""Packed examples are attended to one by one: the result is that of each example alone, and no mask is made."""

from typing import Any

import pytest
import torch
import transformers
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from finetune_trainer.models import packed_attention
from finetune_trainer.training.contamination import prepare_packing
from tests.estimate.measure import Storages
from tests.trainer.test_guards import tiny

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "attn_implementation": "sdpa",
}
KINDS: dict[str, dict[str, Any]] = {
    "LlamaConfig": {},
    "Qwen3Config": {"head_dim": 16},
    "MistralConfig": {"sliding_window": 7},
    "Gemma3TextConfig": {"head_dim": 16, "sliding_window": 7, "sliding_window_pattern": 2},
    "MixtralConfig": {"num_local_experts": 4},
    "Phi3Config": {},
    "GPTNeoXConfig": {},
}
LENGTHS = [5, 20, 1, 12]


def make(kind: str) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**COMMON | KINDS[kind]))


def examples(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 96, (length,), generator=generator).tolist() for length in lengths]


def packed_batch(lengths: list[int]) -> dict[str, Any]:
    """Return the batch as TRL's collator makes it, without its labels."""
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch: dict[str, Any] = collator(
        [{"input_ids": [token for row in examples(lengths) for token in row], "seq_lengths": lengths}]
    )
    del batch["labels"], batch["seq_idx"]
    return batch


@pytest.mark.parametrize("kind", KINDS)
def test_packed_examples_are_computed_as_alone(kind: str) -> None:
    model, alone = make(kind), make(kind)
    rows = [{"input_ids": row} for row in examples([20, 18])]
    assert prepare_packing(model, rows) is None
    assert packed_attention.is_installed(model)
    packed = model(**packed_batch(LENGTHS), use_cache=False).logits[0]
    single = torch.cat([alone(input_ids=torch.tensor([row])).logits[0] for row in examples(LENGTHS)])
    torch.testing.assert_close(packed, single, rtol=1e-4, atol=1e-4)
    for logits in (packed, single):
        logits.square().mean().backward()
    for weight, expected in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["LlamaConfig", "MistralConfig"])
def test_rows_that_are_not_packed_are_computed_as_before(kind: str) -> None:
    model, before = make(kind), make(kind)
    assert packed_attention.install(model)
    ids = torch.tensor(examples([12, 12]))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    for inputs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
        assert torch.equal(model(**inputs).logits, before(**inputs).logits)


def test_the_memory_of_packed_examples_does_not_grow_with_the_square_of_the_batch() -> None:
    """With a mask four times as many examples take more than eight times the memory here."""
    model = make("LlamaConfig")
    assert packed_attention.install(model)

    def held(count: int) -> int:
        batch = packed_batch([64] * count)
        with Storages(
            [*model.parameters(), *model.buffers(), *(v for v in batch.values() if torch.is_tensor(v))]
        ) as now:
            result = model.base_model(**batch, use_cache=False)
            held_bytes: int = now.now
        del result
        return held_bytes

    assert held(32) < 4.1 * held(8)


def test_what_has_no_such_attention_keeps_its_own() -> None:
    assert not packed_attention.install(tiny("bloom"))
    assert prepare_packing(tiny("bloom"), [{"input_ids": row} for row in examples([20, 18])]) is not None
    eager = make("LlamaConfig")
    eager.set_attn_implementation("eager")
    assert not packed_attention.install(eager)


def test_a_model_that_does_not_hand_on_the_borders_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("LlamaConfig")
    genuine = packed_attention.attend

    def forgetful(*arguments: Any, **options: Any) -> Any:
        options.pop(packed_attention.BORDERS, None)
        return genuine(*arguments, **options)

    monkeypatch.setattr(packed_attention, "attend", forgetful)
    assert prepare_packing(model, [{"input_ids": row} for row in examples([20, 18])]) is None
    assert not packed_attention.is_installed(model)
    assert model.config._attn_implementation == "sdpa"
