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
class Measured:
    """How good a model is on the held-out rows: the objective's own loss and, where answers are compared, how often it is right."""

    loss: float
    accuracy: float | None = None
    perplexity: float | None = None
    """Only where the loss is that of single tokens."""


Measure = Callable[[Any], Measured]
"""Measures a model. The first one that it is given is the reference of those objectives that have one."""


def make_measure(spec: FineTuneJobSpec, held_out: list[Example], rows: list[TokenizedRow]) -> Measure:
    """How models are measured by the job's objective: ``held_out`` as texts, or ``rows`` with the answers to be compared."""
    beta = (spec.preference or Preference()).beta
    match spec.objective:
        case "sft":
            return lambda model: _likelihood(model, held_out)
        case "orpo":
            return lambda model: _orpo(model, rows, beta)
        case "reward":
            return lambda model: _reward(model, rows)
        case "dpo":
            return _against_reference(rows, ("chosen_ids", "rejected_ids"), lambda now, then: _dpo(now, then, beta))
        case "kto":
            mixed = [
                row | {"KL_ids": other["completion_ids"]}
                for row, other in zip(rows, [rows[-1], *rows[:-1]], strict=True)
            ]
            labels = torch.tensor([row["label"] for row in rows])
            return _against_reference(
                mixed, ("completion_ids", "KL_ids"), lambda now, then: _kto(now, then, labels, beta)
            )


def _likelihood(model: Any, held_out: list[Example]) -> Measured:
    loss = mean_loss(model, held_out)
    return Measured(loss, perplexity=perplexity(loss))


def _against_reference(
    rows: list[TokenizedRow], names: tuple[str, str], judge: Callable[[torch.Tensor, torch.Tensor], Measured]
) -> Measure:
    """Compare the answers' log-probabilities with those of the first model that is given."""
    reference: list[torch.Tensor] = []

    def measured(model: Any) -> Measured:
        with evaluation_mode(model):
            sums = [[_answer(model, row["prompt_ids"], row[name]).sum() for name in names] for row in rows]
        now = torch.tensor(sums)
        if not reference:
            reference.append(now)
        return judge(now, reference[0])

    return measured


def _dpo(now: torch.Tensor, then: torch.Tensor, beta: float) -> Measured:
    """Equation 7 of Direct Preference Optimization (arXiv 2305.18290)."""
    rewards = beta * (now - then)
    margins = rewards[:, 0] - rewards[:, 1]
    return Measured(float(-logsigmoid(margins).mean()), float((margins > 0).float().mean()))


def _kto(now: torch.Tensor, then: torch.Tensor, labels: torch.Tensor, beta: float) -> Measured:
    """Equation 8 of KTO (arXiv 2402.01306), without its weights; the divergence is estimated over all held-out rows."""
    ratios, divergence = (now - then)[:, 0], (now - then)[:, 1].mean().clamp(min=0)
    signs = torch.where(labels, 1.0, -1.0)
    losses = 1 - torch.sigmoid(beta * signs * (ratios - divergence))
    return Measured(float(losses.mean()), float((signs * ratios > 0).float().mean()))


def _orpo(model: Any, rows: list[TokenizedRow], beta: float) -> Measured:
    """Equations 6 and 7 of ORPO (arXiv 2403.07691); as in TRL, the likelihood is that of prompt and answer."""
    losses, right = [], []
    with evaluation_mode(model):
        for row in rows:
            chosen, rejected = (
                _answer(model, row["prompt_ids"], row[name]).mean() for name in ("chosen_ids", "rejected_ids")
            )
            odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
            whole = _answer(model, [], row["prompt_ids"] + row["chosen_ids"]).mean()
            losses.append(float(-whole - beta * logsigmoid(odds)))
            right.append(float(chosen > rejected))
    return Measured(sum(losses) / len(losses), sum(right) / len(right))


def _reward(model: Any, rows: list[TokenizedRow]) -> Measured:
    """The log-likelihood of the preferences under Bradley and Terry's model, as in InstructGPT (arXiv 2203.02155)."""
    with evaluation_mode(model):
        scores = torch.tensor(
            [[_score(model, row["prompt_ids"] + row[name]) for name in ("chosen_ids", "rejected_ids")] for row in rows]
        )
    margins = scores[:, 0] - scores[:, 1]
    return Measured(float(-logsigmoid(margins).mean()), float((margins > 0).float().mean()))


def _score(model: Any, ids: list[int]) -> float:
    return float(model(input_ids=torch.tensor([ids], device=model.device)).logits[0, 0])


def _answer(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probability of each token of the answer; of an answer without a prompt, from its second token on."""
    ids = torch.tensor([prompt + answer], device=model.device)
    # a prompt's learned tokens, which some methods put first, have logits too
    logits = model(input_ids=ids).logits[0, -ids.shape[1] : -1].float()
    return -cross_entropy(logits, ids[0, 1:], reduction="none")[max(len(prompt) - 1, 0) :].cpu()
