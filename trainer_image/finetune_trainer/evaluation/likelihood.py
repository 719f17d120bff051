"""How likely a model finds given tokens: held-out loss, log-probabilities and logits, each sequence by itself and in float32."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from finetune_trainer.data.dataset import Example
from finetune_trainer.models import eval_mode


def mean_loss(model: Any, examples: Sequence[Example]) -> float:
    """Mean negative log-likelihood, in nats per learned token, over all tokens of all examples."""
    total, count = 0.0, 0
    with eval_mode.evaluation_mode(model):
        for example in examples:
            logits = _logits(model, example.input_ids)[:-1].float()
            labels = torch.tensor(example.labels[1:], device=logits.device)
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += example.learned
    return total / max(count, 1)


def perplexity(loss: float) -> float:
    """exp of the mean negative log-likelihood per token, in nats: between how many tokens the model is torn.

    Jelinek, Mercer, Bahl and Baker, "Perplexity, a measure of the difficulty of speech recognition tasks" (1977). Of a loss above 700, whose exp is no
    float any more, that of 700.
    """
    return math.exp(min(loss, 700.0))


def logits_of(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Logits after each token, in float32 on the CPU: shape (length, vocabulary)."""
    with eval_mode.evaluation_mode(model):
        return _logits(model, token_ids).float().cpu()


def logprobs(logits: torch.Tensor, token_ids: list[int]) -> list[float]:
    """Log-probability of token i+1 after the tokens 0..i: one entry fewer than ``token_ids``."""
    following = torch.tensor(token_ids[1:]).unsqueeze(-1)
    return [float(value) for value in torch.log_softmax(logits[:-1], dim=-1).gather(-1, following).squeeze(-1)]


def _logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    """One row for each token: those of a prompt's learned tokens, which come first, are left out."""
    given: torch.Tensor = model(input_ids=torch.tensor([token_ids], device=model.device)).logits[0]
    return given[-len(token_ids) :]
