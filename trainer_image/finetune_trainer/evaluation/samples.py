"""A few held-out prompts and what a model makes of them, for people to compare base and adapter by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from finetune_trainer.data.dataset import Example
from finetune_trainer.data.tokens import IGNORED
from finetune_trainer.models.eval_mode import evaluation_mode
from finetune_trainer.runtime.logs import log

PROMPT_TOKENS, ANSWER_TOKENS = 256, 48
"""Longest prompt (its end counts) and longest answer."""


@dataclass(frozen=True)
class Prompt:
    """The beginning of a held-out sequence, and what follows it there."""

    token_ids: list[int]
    text: str
    expected: str


def choose_prompts(tokenizer: Any, held_out: Sequence[Example], wanted: int) -> list[Prompt]:
    """The first so many prompts: what comes before the learned part or, where all is learned, the first half, of at most 24 tokens."""
    prompts: list[Prompt] = []
    for example in held_out:
        ids = example.input_ids
        begin = next((index for index, label in enumerate(example.labels) if label != IGNORED), len(ids))
        if begin < 1:
            begin = min(len(ids) // 2, 24)
        if 1 <= begin < len(ids) and len(prompts) < wanted:
            text = tokenizer.decode(ids[:begin], skip_special_tokens=True)
            expected = tokenizer.decode(ids[begin : begin + ANSWER_TOKENS], skip_special_tokens=True)
            prompts.append(Prompt(ids[max(begin - PROMPT_TOKENS, 0) : begin], text, expected))
    return prompts


def generate_answers(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    """What the model makes of each prompt, always taking the likeliest token.

    A model that cannot generate has no answers: an illustration must not fail an adapter that is trained and verified.
    """
    chosen = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=ANSWER_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    found = []
    with evaluation_mode(model):
        for prompt in prompts:
            ids = torch.tensor([prompt.token_ids], device=model.device)
            try:
                whole = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=chosen, use_cache=True
                )
            except (ValueError, RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
                log.warning("the model does not generate, so the report has no samples: %s", error)
                return []
            found.append(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
    return found
