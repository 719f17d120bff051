"""Compute losses, log-probabilities and logits of given tokens, in batches of rows of similar length.

Where several processes train together, each computes a part of the batches: then these are collective calls.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from finetune_trainer.data.dataset import Example
from finetune_trainer.distributed import process_group
from finetune_trainer.models import eval_mode, streaming

T = TypeVar("T")


def mean_loss(model: Any, examples: Sequence[Example], tokens: int = 0) -> float:
    """Compute the mean negative log-likelihood of all learned tokens, in nats per token.

    Args:
        model: The model.
        examples: The sequences.
        tokens: Maximum number of tokens in a batch, padding included.
    """
    return divide_by_learned(summed_losses(model, examples, tokens), examples)


def summed_losses(model: Any, examples: Sequence[Example], tokens: int = 0) -> list[float]:
    """Compute the negative log-likelihood of the learned tokens of each sequence, in nats."""

    def total(index: int, logits: torch.Tensor) -> float:
        labels = torch.tensor(examples[index].labels[1:], dtype=torch.long, device=logits.device)
        return float(torch.nn.functional.cross_entropy(logits[:-1].float(), labels, reduction="sum"))

    return run_batched(model, [example.input_ids for example in examples], total, tokens)


def divide_by_learned(losses: Sequence[float], examples: Sequence[Example]) -> float:
    """Return the mean loss of a learned token, from the summed losses of the sequences."""
    return sum(losses) / max(sum(example.learned for example in examples), 1)


def perplexity(loss: float) -> float:
    """Return the perplexity: exp of the mean negative log-likelihood per token.

    Jelinek, Mercer, Bahl and Baker, "Perplexity, a measure of the difficulty of speech recognition tasks" (1977).

    Args:
        loss: Nats per token. A loss above 700 counts as 700, since the exp of more is no float.
    """
    return math.exp(min(loss, 700.0))


def compute_logits(model: Any, texts: Sequence[list[int]], tokens: int = 0) -> list[torch.Tensor]:
    """Compute the logits after each token of each text: shape (length, vocabulary), float32, on the CPU.

    For a model that scores texts, it is the score of each text: shape (1,). It is no collective call.
    """
    return run_batched(model, texts, lambda _, logits: logits.float().cpu(), tokens, is_shared=False)


def token_logprobs(logits: torch.Tensor, token_ids: list[int]) -> list[float]:
    """Return the log-probability of each token after the tokens before it: one fewer than ``token_ids``."""
    following = torch.tensor(token_ids[1:], dtype=torch.long, device=logits.device).unsqueeze(-1)
    return [float(value) for value in torch.log_softmax(logits[:-1].float(), dim=-1).gather(-1, following).squeeze(-1)]


def run_batched(
    model: Any,
    texts: Sequence[list[int]],
    reduce: Callable[[int, torch.Tensor], T],
    tokens: int = 0,
    *,
    is_shared: bool = True,
) -> list[T]:
    """Run the model on each text, and return what ``reduce`` makes of a text's number and its logits.

    Args:
        model: The model.
        texts: Token ids, at least one each.
        reduce: Called once for each text, in any order. In a training of several processes its results are sent to all.
        tokens: Maximum number of tokens in a batch, padding included; a batch has at least one text.
        is_shared: Whether several processes share the batches.
    """
    batches = plan_batches([len(text) for text in texts], tokens)
    results: dict[int, T] = {}
    with eval_mode.evaluation_mode(model):
        for batch in process_group.share(batches) if is_shared else batches:
            for index, logits in zip(batch, _forward(model, [texts[index] for index in batch]), strict=True):
                results[index] = reduce(index, logits)
    if is_shared:
        results = {index: value for part in process_group.gather_everywhere(results) for index, value in part.items()}
    return [results[index] for index in range(len(texts))]


def plan_batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Return the indices of the texts of each batch, the longest texts first.

    A batch has at most ``tokens`` tokens, padding included, or a single text.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _forward(model: Any, texts: list[list[int]]) -> list[torch.Tensor]:
    """Return each text's logits, of shape (length, vocabulary), without those of virtual tokens."""
    longest = max(map(len, texts))
    padding = getattr(model.config, "pad_token_id", None) or 0
    device = streaming.input_device(model)
    # pad on the right, where a causal model does not see it
    ids = torch.tensor([text + [padding] * (longest - len(text)) for text in texts], device=device)
    mask = None
    if any(len(text) < longest for text in texts):
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts], device=device)
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    if logits.dim() == 2:
        return list(logits)
    return [row[-longest:][: len(text)] for row, text in zip(logits, texts, strict=True)]
