"""Choose a few held-out prompts and generate answers, so that people can compare base and adapter."""

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
"""Longest prompt, of which the end is used, and longest answer."""


@dataclass(frozen=True)
class Prompt:
    """The beginning of a held-out sequence, and the text that follows it there."""

    token_ids: list[int]
    text: str
    expected: str


def choose_prompts(tokenizer: Any, held_out: Sequence[Example], count: int) -> list[Prompt]:
    """Choose the prompts of the first ``count`` suitable sequences.

    A prompt is what comes before the learned part. If everything is learned, it is the first half, at most 24 tokens.
    """
    prompts: list[Prompt] = []
    for example in held_out:
        ids = example.input_ids
        begin = next((index for index, label in enumerate(example.labels) if label != IGNORED), len(ids))
        if begin < 1:
            begin = min(len(ids) // 2, 24)
        if 1 <= begin < len(ids) and len(prompts) < count:
            text = tokenizer.decode(ids[:begin], skip_special_tokens=True)
            expected = tokenizer.decode(ids[begin : begin + ANSWER_TOKENS], skip_special_tokens=True)
            prompts.append(Prompt(ids[max(begin - PROMPT_TOKENS, 0) : begin], text, expected))
    return prompts


def list_end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, and those of the model's generation_config.

    What is no token id there, such as a text, is left out, as in the encoding of the dataset.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    tokens = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in (tokenizer.eos_token_id, *tokens) if isinstance(token, int)})


def generate_answers(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    """Generate an answer to each prompt by greedy decoding.

    Returns:
        The answers; an empty list if the model cannot generate. Samples only illustrate, so they never fail a job.
    """
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=ANSWER_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=list_end_tokens(model, tokenizer) or None,
    )
    answers = []
    with evaluation_mode(model):
        for prompt in prompts:
            ids = torch.tensor([prompt.token_ids], device=model.device)
            try:
                output = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, use_cache=True
                )
            except (ValueError, RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
                log.warning("the model cannot generate text, so the report has no samples: %s", error)
                return []
            answers.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return answers
