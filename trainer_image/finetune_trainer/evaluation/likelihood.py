"""Compute losses, log-probabilities and logits of given tokens, one sequence at a time and in float32."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from finetune_trainer.data.dataset import Example
from finetune_trainer.models import eval_mode


def mean_loss(model: Any, examples: Sequence[Example]) -> float:
    """Compute the mean negative log-likelihood of all learned tokens, in nats per token."""
    total, count = 0.0, 0
    with eval_mode.evaluation_mode(model):
        for example in examples:
            logits = _logits(model, example.input_ids)[:-1].float()
            labels = torch.tensor(example.labels[1:], device=logits.device)
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += example.learned
    return total / max(count, 1)


def perplexity(loss: float) -> float:
    """Return the perplexity: exp of the mean negative log-likelihood per token.

    Jelinek, Mercer, Bahl and Baker, "Perplexity, a measure of the difficulty of speech recognition tasks" (1977).

    Args:
        loss: Nats per token. A loss above 700 counts as 700, since the exp of more is no float.
    """
    return math.exp(min(loss, 700.0))


def compute_logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Compute the logits after each token: shape (length, vocabulary), float32, on the CPU."""
    with eval_mode.evaluation_mode(model):
        return _logits(model, token_ids).float().cpu()


def token_logprobs(logits: torch.Tensor, token_ids: list[int]) -> list[float]:
    """Return the log-probability of each token after the tokens before it: one fewer than ``token_ids``."""
    following = torch.tensor(token_ids[1:]).unsqueeze(-1)
    return [float(value) for value in torch.log_softmax(logits[:-1], dim=-1).gather(-1, following).squeeze(-1)]


def _logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Return one row of logits for each token, without those of prompt tuning's virtual tokens."""
    logits: torch.Tensor = model(input_ids=torch.tensor([token_ids], device=model.device)).logits[0]
    return logits[-len(token_ids) :]
