"""Measure a model on held-out rows by the objective that it is trained for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from finetune_api.finetunejob import FineTuneJobSpec, Preference
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.tokens import TokenizedRow
from finetune_trainer.evaluation.likelihood import divide_by_learned, perplexity, run_batched, summed_losses


@dataclass(frozen=True)
class HeldOutMetrics:
    """A model's metrics on the held-out rows.

    ``loss`` is the objective's own, ``accuracy`` the share of answers that are judged correctly (only for objectives
    that compare answers), ``perplexity`` is set only if the loss is that of single tokens.
    """

    loss: float
    accuracy: float | None = None
    perplexity: float | None = None


COMPARED_WITH_REFERENCE = ("dpo", "kto")
"""Objectives whose loss compares a model with a reference model."""
Scores = list[list[float]]
"""Numbers that a model's forward passes give for each held-out row. The metrics are computed from them."""


class Measure:
    """Measures models on held-out rows.

    For objectives with a reference model, the first model that is measured is the reference.
    """

    def __init__(self, score: Callable[[Any], Scores], judge: Callable[[Scores, Scores], HeldOutMetrics]) -> None:
        """Create it for an objective.

        Args:
            score: Computes a model's scores. This is the part that takes time.
            judge: Computes the metrics from the scores of a model and those of its reference.
        """
        self.score, self._judge = score, judge
        self._reference: Scores | None = None

    def __call__(self, model: Any) -> HeldOutMetrics:
        """Compute the metrics of a model."""
        return self.judge(self.score(model))

    def judge(self, scores: Scores) -> HeldOutMetrics:
        """Compute the metrics of the model that has these scores."""
        if self._reference is None:
            self._reference = scores
        return self._judge(scores, self._reference)


def make_measure(
    spec: FineTuneJobSpec, held_out: list[Example], rows: list[TokenizedRow], tokens: int | None = None
) -> Measure:
    """Make the function that measures models by the job's objective.

    By default a batch has no more tokens than the longest row that the job allows, and so needs no more memory.

    Args:
        spec: The job.
        held_out: Held-out sequences, for objective ``sft``.
        rows: Held-out rows with the answers to compare, for the other objectives.
        tokens: Maximum number of tokens in a batch.
    """
    beta, tokens = (spec.preference or Preference()).beta, tokens or spec.training.max_length
    match spec.objective:
        case "sft":
            return Measure(
                lambda model: [[loss] for loss in summed_losses(model, held_out, tokens)],
                lambda scores, _: _sft_metrics(scores, held_out),
            )
        case "orpo":
            return Measure(
                lambda model: _score_orpo(model, rows, beta, tokens), lambda scores, _: _orpo_metrics(scores)
            )
        case "reward":
            return Measure(lambda model: _score_reward(model, rows, tokens), lambda scores, _: _reward_metrics(scores))
        case "dpo":
            return Measure(
                lambda model: _sum_logprobs(model, rows, ("chosen_ids", "rejected_ids"), tokens),
                lambda scores, reference: _dpo_metrics(torch.tensor(scores), torch.tensor(reference), beta),
            )
        case "kto":
            mixed = [
                row | {"KL_ids": mismatched["completion_ids"]}
                for row, mismatched in zip(rows, [rows[-1], *rows[:-1]], strict=True)
            ]
            labels = torch.tensor([row["label"] for row in rows])
            return Measure(
                lambda model: _sum_logprobs(model, mixed, ("completion_ids", "KL_ids"), tokens),
                lambda scores, reference: _kto_metrics(torch.tensor(scores), torch.tensor(reference), labels, beta),
            )


def _sft_metrics(scores: Scores, held_out: list[Example]) -> HeldOutMetrics:
    loss = divide_by_learned([loss for (loss,) in scores], held_out)
    return HeldOutMetrics(loss, perplexity=perplexity(loss))


def _sum_logprobs(model: Any, rows: list[TokenizedRow], names: tuple[str, str], tokens: int) -> Scores:
    return [[float(part.sum()) for part in parts] for parts in _logprobs(model, rows, names, tokens)]


def _dpo_metrics(logps: torch.Tensor, reference: torch.Tensor, beta: float) -> HeldOutMetrics:
    """Compute the DPO loss: equation 7 of Direct Preference Optimization (arXiv 2305.18290)."""
    rewards = beta * (logps - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    return HeldOutMetrics(float(-logsigmoid(margins).mean()), float((margins > 0).float().mean()))


def _kto_metrics(logps: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor, beta: float) -> HeldOutMetrics:
    """Compute the KTO loss: equation 8 of arXiv 2402.01306, without weights.

    The divergence is estimated over all held-out rows.
    """
    ratios, divergence = (logps - reference)[:, 0], (logps - reference)[:, 1].mean().clamp(min=0)
    signs = torch.where(labels, 1.0, -1.0)
    losses = 1 - torch.sigmoid(beta * signs * (ratios - divergence))
    return HeldOutMetrics(float(losses.mean()), float((signs * ratios > 0).float().mean()))


def _score_orpo(model: Any, rows: list[TokenizedRow], beta: float, tokens: int) -> Scores:
    """Compute the ORPO loss of each row, and whether it is judged correctly: equations 6 and 7 of arXiv 2403.07691.

    As in TRL, the likelihood is that of prompt and answer.
    """
    scores = []
    logprobs = _logprobs(model, rows, ("chosen_ids", "rejected_ids"), tokens, with_prompt=True)
    for row, both in zip(rows, logprobs, strict=True):
        chosen, rejected = (logps[_answer_start(row) :].mean() for logps in both)
        odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
        scores.append([float(-both[0].mean() - beta * logsigmoid(odds)), float(chosen > rejected)])
    return scores


def _orpo_metrics(scores: Scores) -> HeldOutMetrics:
    losses, right = zip(*scores, strict=True)
    return HeldOutMetrics(sum(losses) / len(losses), sum(right) / len(right))


def _score_reward(model: Any, rows: list[TokenizedRow], tokens: int) -> Scores:
    texts = [row["prompt_ids"] + row[name] for row in rows for name in ("chosen_ids", "rejected_ids")]
    scores = run_batched(model, texts, lambda _, logits: float(logits[0]), tokens)
    return [list(pair) for pair in zip(scores[::2], scores[1::2], strict=True)]


def _reward_metrics(scores: Scores) -> HeldOutMetrics:
    """Compute the reward loss: Bradley and Terry's model, as in InstructGPT (arXiv 2203.02155)."""
    pairs = torch.tensor(scores)
    margins = pairs[:, 0] - pairs[:, 1]
    return HeldOutMetrics(float(-logsigmoid(margins).mean()), float((margins > 0).float().mean()))


def _answer_start(row: TokenizedRow) -> int:
    """Return the number of the first log-probability of the answer; without a prompt, that of its second token."""
    return max(len(row["prompt_ids"]) - 1, 0)


def _logprobs(
    model: Any, rows: list[TokenizedRow], names: tuple[str, str], tokens: int, *, with_prompt: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the log-probabilities of the tokens of both answers of each row, and of the prompt if asked for."""
    texts = [row["prompt_ids"] + row[name] for row in rows for name in names]

    def answer(index: int, logits: torch.Tensor) -> torch.Tensor:
        following = torch.tensor(texts[index][1:], dtype=torch.long, device=logits.device)
        logps = -cross_entropy(logits[:-1].float(), following, reduction="none").cpu()
        return logps if with_prompt else logps[_answer_start(rows[index // 2]) :]

    logps = run_batched(model, texts, answer, tokens)
    return list(zip(logps[::2], logps[1::2], strict=True))
