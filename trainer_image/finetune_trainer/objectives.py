"""Each training objective: which of TRL's trainers learns it from our sequences, and how a model is measured by it on held-out rows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import datasets  # type: ignore[import-untyped]
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy, logsigmoid
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_api.finetunejob import FineTuneJobSpec, Preference
from finetune_trainer.data import Example
from finetune_trainer.evaluation import evaluating, mean_loss, perplexity
from finetune_trainer.tokens import IGNORED, Sequence

REFERENCE = "ref"
"""TRL's name of the frozen copy of the adapter that dpo and kto measure themselves against."""


@dataclass(frozen=True)
class Recipe:
    """A trainer of TRL, its configuration class, and the settings that only it has."""

    trainer: type[Any]
    config: type[Any]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """How good a model is on the held-out rows: the objective's own loss and, where answers are compared, how often it is right."""

    loss: float
    accuracy: float | None = None
    perplexity: float | None = None
    """Only where the loss is that of single tokens."""


Measure = Callable[[Any], Measured]
"""Measures a model. The first one that it is given is the reference of those objectives that have one."""


def recipe(spec: FineTuneJobSpec) -> Recipe:
    """How TRL trains the objective. Its sequences are ours, so its own preparation of the data, which may cut and drop rows unseen, is left out."""
    preference, length = spec.preference or Preference(), spec.training.max_length
    match spec.objective:
        case "sft":
            skip = {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": spec.training.packing}
            return Recipe(SFTTrainer, SFTConfig, {"max_length": length, **skip})
        case "dpo":
            return Recipe(_Dpo, DPOConfig, {"max_length": None, "beta": preference.beta})
        case "orpo":
            return Recipe(
                _Orpo, ORPOConfig, {"max_length": length, "beta": preference.beta, "remove_unused_columns": False}
            )
        case "kto":
            weights = {
                "desirable_weight": preference.desirable_weight,
                "undesirable_weight": preference.undesirable_weight,
            }
            return Recipe(_Kto, KTOConfig, {"max_length": None, "beta": preference.beta, **weights})
        case "reward":
            return Recipe(_Reward, RewardConfig, {"max_length": None})


def drops_dropout(spec: FineTuneJobSpec) -> str | None:
    """A warning where TRL trains without the dropout that the user set: the answers' likelihoods would be too noisy to compare."""
    dropout = getattr(spec.method.config, "dropout", 0)
    if spec.objective == "sft" or not dropout:
        return None
    return f"objective {spec.objective} is trained without dropout: spec.method.{spec.method.name}.dropout {dropout} has no effect"


def without_reference(model: Any) -> None:
    """Take TRL's frozen copy of the adapter out of the model, once it is trained."""
    if isinstance(model, PeftModel) and REFERENCE in model.peft_config:
        model.delete_adapter(REFERENCE)


class _Dpo(DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


class _Kto(KTOTrainer):
    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: KTOConfig, dataset_name: str) -> Any:
        """With each row the answer to another prompt of its batch, from which the divergence from the reference is estimated. TRL takes the rows in order."""

        def rotated(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            answers = rows["completion_ids"]
            return {"KL_completion_ids": [answers[-1], *answers[:-1]]}

        shuffled = dataset.shuffle(seed=args.data_seed)
        return shuffled.map(rotated, batched=True, batch_size=args.per_device_train_batch_size)


class _Orpo(ORPOTrainer):
    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """Our tokens under the names that this older trainer of TRL gives them."""
        prompt = feature["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for name in ("chosen", "rejected"):
            answer = feature[f"{name}_ids"]
            row |= {
                f"{name}_input_ids": prompt + answer,
                f"{name}_attention_mask": [1] * (len(prompt) + len(answer)),
                f"{name}_labels": [IGNORED] * len(prompt) + answer,
            }
        return row


class _Reward(RewardTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Each answer with its prompt before it."""

        def whole(row: dict[str, Any]) -> dict[str, Any]:
            return {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")}

        return dataset.map(whole, remove_columns=["prompt_ids"])


def measure(spec: FineTuneJobSpec, held_out: list[Example], rows: list[Sequence]) -> Measure:
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
    rows: list[Sequence], names: tuple[str, str], judge: Callable[[torch.Tensor, torch.Tensor], Measured]
) -> Measure:
    """Compare the answers' log-probabilities with those of the first model that is given."""
    reference: list[torch.Tensor] = []

    def measured(model: Any) -> Measured:
        with evaluating(model):
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


def _orpo(model: Any, rows: list[Sequence], beta: float) -> Measured:
    """Equations 6 and 7 of ORPO (arXiv 2403.07691); as in TRL, the likelihood is that of prompt and answer."""
    losses, right = [], []
    with evaluating(model):
        for row in rows:
            chosen, rejected = (
                _answer(model, row["prompt_ids"], row[name]).mean() for name in ("chosen_ids", "rejected_ids")
            )
            odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
            whole = _answer(model, [], row["prompt_ids"] + row["chosen_ids"]).mean()
            losses.append(float(-whole - beta * logsigmoid(odds)))
            right.append(float(chosen > rejected))
    return Measured(sum(losses) / len(losses), sum(right) / len(right))


def _reward(model: Any, rows: list[Sequence]) -> Measured:
    """The log-likelihood of the preferences under Bradley and Terry's model, as in InstructGPT (arXiv 2203.02155)."""
    with evaluating(model):
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


def check_sequences(spec: FineTuneJobSpec, train: datasets.Dataset) -> list[str]:
    """Warnings about data of which the objective makes little."""
    if spec.objective == "kto" and len(labels := set(train.unique("label"))) == 1:
        return [
            f"every completion has the label {str(labels.pop()).lower()}: objective kto learns from wanted and unwanted ones"
        ]
    return []
