"""Map each training objective to TRL's trainer and configuration, for sequences that are tokenized already."""

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

from finetune_api.finetunejob import FineTuneJobSpec, Preference
from finetune_trainer.data.learned_parts import label_sequences
from finetune_trainer.training.sft import SftTrainer

REFERENCE_ADAPTER = "ref"
"""TRL's name of the frozen copy of the adapter that is the reference model of dpo and kto."""
NO_ROUTER_LOSS = {"router_aux_loss_coef": 0.0}
"""No auxiliary loss of a mixture of experts' router, which most methods freeze: each model has the objective's loss."""


@dataclass(frozen=True)
class Objective:
    """A trainer of TRL, its configuration class, and the settings that only this trainer has."""

    trainer: type[Any]
    config: type[Any]
    settings: dict[str, Any] = field(default_factory=dict)


def objective_of(spec: FineTuneJobSpec) -> Objective:
    """Return TRL's trainer of the objective.

    The sequences are tokenized already. TRL's own preparation is skipped, because it may silently cut and drop rows.
    """
    preference, length = spec.preference or Preference(), spec.training.max_length
    match spec.objective:
        case "sft":
            skip = {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": spec.training.packs}
            return Objective(SftTrainer, SFTConfig, {"max_length": length, **skip, **NO_ROUTER_LOSS})
        case "dpo":
            return Objective(_Dpo, DPOConfig, {"max_length": None, "beta": preference.beta, **NO_ROUTER_LOSS})
        case "orpo":
            return Objective(
                _Orpo, ORPOConfig, {"max_length": length, "beta": preference.beta, "remove_unused_columns": False}
            )
        case "kto":
            weights = {
                "desirable_weight": preference.desirable_weight,
                "undesirable_weight": preference.undesirable_weight,
                **NO_ROUTER_LOSS,
            }
            return Objective(_Kto, KTOConfig, {"max_length": None, "beta": preference.beta, **weights})
        case "reward":
            return Objective(_Reward, RewardConfig, {"max_length": None})


def check_dropout(spec: FineTuneJobSpec) -> str | None:
    """Return a warning if the user's dropout has no effect; TRL disables it for most objectives."""
    dropout = getattr(spec.method.config, "dropout", 0)
    if spec.objective == "sft" or not dropout:
        return None
    field = f"spec.method.{spec.method.name}.dropout"
    return f"objective {spec.objective} is trained without dropout: {field} {dropout} has no effect"


def delete_reference_adapter(model: Any) -> None:
    """Delete TRL's frozen copy of the adapter from the trained model."""
    if isinstance(model, PeftModel) and REFERENCE_ADAPTER in model.peft_config:
        model.delete_adapter(REFERENCE_ADAPTER)


class _Dpo(DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


class _Kto(KTOTrainer):
    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: KTOConfig, dataset_name: str) -> Any:
        """Add to each row the answer of another prompt of its step, to estimate the KL divergence.

        How a step is divided into batches does not matter, since the out-of-memory ladder changes it. The rows are
        shuffled here, because TRL's trainer takes them in order.
        """

        def rotate(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            answers = rows["completion_ids"]
            return {"KL_completion_ids": [answers[-1], *answers[:-1]]}

        shuffled = dataset.shuffle(seed=args.data_seed)
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return shuffled.map(rotate, batched=True, batch_size=step)


class _Orpo(ORPOTrainer):
    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """Rename our tokens to the names of this older trainer of TRL."""
        prompt = feature["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for name, (ids, labels) in label_sequences(feature).items():
            row |= {f"{name}_input_ids": ids, f"{name}_attention_mask": [1] * len(ids), f"{name}_labels": labels}
        return row


class _Reward(RewardTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Put the prompt before each answer."""

        def join(row: dict[str, Any]) -> dict[str, Any]:
            return {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")}

        return dataset.map(join, remove_columns=["prompt_ids"])


def check_sequences(spec: FineTuneJobSpec, train: datasets.Dataset) -> list[str]:
    """Return warnings about data from which the objective learns little."""
    if spec.objective == "kto" and len(labels := set(train.unique("label"))) == 1:
        return [
            f"every completion has the label {str(labels.pop()).lower()}: objective kto learns from desirable and "
            "undesirable ones"
        ]
    return []
