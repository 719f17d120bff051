"""Each training objective: which of TRL's trainers learns it from our sequences, and how a model is measured by it on held-out rows."""

from dataclasses import dataclass, field
from typing import Any

import datasets  # type: ignore[import-untyped]
from peft import PeftModel
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
from finetune_trainer.data.tokens import IGNORED

REFERENCE = "ref"
"""TRL's name of the frozen copy of the adapter that dpo and kto measure themselves against."""


@dataclass(frozen=True)
class Objective:
    """A trainer of TRL, its configuration class, and the settings that only it has."""

    trainer: type[Any]
    config: type[Any]
    settings: dict[str, Any] = field(default_factory=dict)


def objective_of(spec: FineTuneJobSpec) -> Objective:
    """How TRL trains the objective. Its sequences are ours, so its own preparation of the data, which may cut and drop rows unseen, is left out."""
    preference, length = spec.preference or Preference(), spec.training.max_length
    match spec.objective:
        case "sft":
            skip = {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": spec.training.packing}
            return Objective(SFTTrainer, SFTConfig, {"max_length": length, **skip})
        case "dpo":
            return Objective(_Dpo, DPOConfig, {"max_length": None, "beta": preference.beta})
        case "orpo":
            return Objective(
                _Orpo, ORPOConfig, {"max_length": length, "beta": preference.beta, "remove_unused_columns": False}
            )
        case "kto":
            weights = {
                "desirable_weight": preference.desirable_weight,
                "undesirable_weight": preference.undesirable_weight,
            }
            return Objective(_Kto, KTOConfig, {"max_length": None, "beta": preference.beta, **weights})
        case "reward":
            return Objective(_Reward, RewardConfig, {"max_length": None})


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


def check_sequences(spec: FineTuneJobSpec, train: datasets.Dataset) -> list[str]:
    """Warnings about data of which the objective makes little."""
    if spec.objective == "kto" and len(labels := set(train.unique("label"))) == 1:
        return [
            f"every completion has the label {str(labels.pop()).lower()}: objective kto learns from wanted and unwanted ones"
        ]
    return []
