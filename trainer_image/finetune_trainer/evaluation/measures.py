"""Measure a model on held-out rows by the objective that it is trained for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from finetune_api.finetunejob import FineTuneJobSpec, Preference
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.tokens import TokenizedRow
from finetune_trainer.evaluation.likelihood import mean_loss, perplexity
from finetune_trainer.models.eval_mode import evaluation_mode


@dataclass(frozen=True)
class HeldOutMetrics:
    """A model's metrics on the held-out rows.

    ``loss`` is the objective's own, ``accuracy`` the share of answers that are judged correctly (only for objectives
    that compare answers), ``perplexity`` is set only if the loss is that of single tokens.
    """

    loss: float
    accuracy: float | None = None
    perplexity: float | None = None


Measure = Callable[[Any], HeldOutMetrics]
"""Measures a model. For objectives with a reference model, the first model that is measured is the reference."""


def make_measure(spec: FineTuneJobSpec, held_out: list[Example], rows: list[TokenizedRow]) -> Measure:
    """Make the function that measures models by the job's objective.

    Args:
        spec: The job.
        held_out: Held-out sequences, for objective ``sft``.
        rows: Held-out rows with the answers to compare, for the other objectives.
    """
    beta = (spec.preference or Preference()).beta
    match spec.objective:
        case "sft":
            return lambda model: _measure_sft(model, held_out)
        case "orpo":
            return lambda model: _measure_orpo(model, rows, beta)
        case "reward":
            return lambda model: _measure_reward(model, rows)
        case "dpo":
            return _measure_with_reference(
                rows, ("chosen_ids", "rejected_ids"), lambda logps, reference: _dpo_metrics(logps, reference, beta)
            )
        case "kto":
            mixed = [
                row | {"KL_ids": other["completion_ids"]}
                for row, other in zip(rows, [rows[-1], *rows[:-1]], strict=True)
            ]
            labels = torch.tensor([row["label"] for row in rows])
            return _measure_with_reference(
                mixed,
                ("completion_ids", "KL_ids"),
                lambda logps, reference: _kto_metrics(logps, reference, labels, beta),
            )


def _measure_sft(model: Any, held_out: list[Example]) -> HeldOutMetrics:
    loss = mean_loss(model, held_out)
    return HeldOutMetrics(loss, perplexity=perplexity(loss))


def _measure_with_reference(
    rows: list[TokenizedRow], names: tuple[str, str], compute: Callable[[torch.Tensor, torch.Tensor], HeldOutMetrics]
) -> Measure:
    """Make a function that compares the answers' log-probabilities with those of the first measured model."""
    reference: list[torch.Tensor] = []

    def measure(model: Any) -> HeldOutMetrics:
        with evaluation_mode(model):
            sums = [[_answer_logprobs(model, row["prompt_ids"], row[name]).sum() for name in names] for row in rows]
        logps = torch.tensor(sums)
        if not reference:
            reference.append(logps)
        return compute(logps, reference[0])

    return measure


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


def _measure_orpo(model: Any, rows: list[TokenizedRow], beta: float) -> HeldOutMetrics:
    """Compute the ORPO loss: equations 6 and 7 of arXiv 2403.07691.

    As in TRL, the likelihood is that of prompt and answer.
    """
    losses, right = [], []
    with evaluation_mode(model):
        for row in rows:
            chosen, rejected = (
                _answer_logprobs(model, row["prompt_ids"], row[name]).mean() for name in ("chosen_ids", "rejected_ids")
            )
            odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
            sequence = _answer_logprobs(model, [], row["prompt_ids"] + row["chosen_ids"]).mean()
            losses.append(float(-sequence - beta * logsigmoid(odds)))
            right.append(float(chosen > rejected))
    return HeldOutMetrics(sum(losses) / len(losses), sum(right) / len(right))


def _measure_reward(model: Any, rows: list[TokenizedRow]) -> HeldOutMetrics:
    """Compute the reward loss: Bradley and Terry's model, as in InstructGPT (arXiv 2203.02155)."""
    with evaluation_mode(model):
        scores = torch.tensor(
            [
                [_score_text(model, row["prompt_ids"] + row[name]) for name in ("chosen_ids", "rejected_ids")]
                for row in rows
            ]
        )
    margins = scores[:, 0] - scores[:, 1]
    return HeldOutMetrics(float(-logsigmoid(margins).mean()), float((margins > 0).float().mean()))


def _score_text(model: Any, ids: list[int]) -> float:
    return float(model(input_ids=torch.tensor([ids], device=model.device)).logits[0, 0])


def _answer_logprobs(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Return the log-probability of each token of the answer; without a prompt, from its second token on."""
    ids = torch.tensor([prompt + answer], device=model.device)
    # the virtual tokens that prompt methods put first have logits too
    logits = model(input_ids=ids).logits[0, -ids.shape[1] : -1].float()
    return -cross_entropy(logits, ids[0, 1:], reduction="none")[max(len(prompt) - 1, 0) :].cpu()
