"""Predict from a FineTuneJob's spec, before the training, what engines check of its adapter. Pure."""

from dataclasses import dataclass
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.linear import SCORE_HEAD
from finetune_api.methods import Dora, Loha, Peft, Targeted
from finetune_engines import engines_that_serve, highest_rank

CONVERTED = ("ADALORA", "VERA", "MISS", "LOHA", "LOKR")
"""PEFT types that are published as a plain LoRA, unless their rank is too high for the engines."""


@dataclass(frozen=True)
class PredictedAdapter:
    """The adapter that a job will publish, with fields of ``AdapterStatus``."""

    peft_type: str
    rank: int | None
    target_modules: tuple[str, ...]
    servable_by: tuple[str, ...]
    base_model: str
    base_revision: str | None


def predict_adapter(spec: FineTuneJobSpec) -> PredictedAdapter:
    """Predict the adapter that a job publishes."""
    config, block = predict_adapter_config(spec), spec.method.config
    modules = getattr(block, "target_modules", [])
    return PredictedAdapter(
        peft_type=config["peft_type"],
        rank=_predict_rank(spec) if config["peft_type"] == "LORA" else None,
        target_modules=tuple(modules) if isinstance(modules, list) else (),
        servable_by=tuple(engines_that_serve(config)),
        base_model=spec.model.uri.removeprefix("hf://"),
        base_revision=spec.model.revision,
    )


def predict_adapter_config(spec: FineTuneJobSpec) -> dict[str, Any]:
    """Return the fields of the published adapter_config.json that decide whether engines can serve it."""
    block, kind = spec.method.config, spec.method.peft_type
    if isinstance(block, Peft):
        return {**block.options, "peft_type": kind}
    saved = [*block.modules_to_save] if isinstance(block, Targeted) else []
    saved += [SCORE_HEAD] if spec.objective == "reward" else []
    bias = getattr(block, "bias", "none")
    if kind in CONVERTED and not saved and bias == "none" and (_predict_rank(spec) or 1) <= highest_rank():
        kind = "LORA"
    return {"peft_type": kind, "use_dora": isinstance(block, Dora), "bias": bias, "modules_to_save": saved}


def _predict_rank(spec: FineTuneJobSpec) -> int | None:
    """Predict the published rank: smaller ones of single modules are padded to the largest. None: not known."""
    block = spec.method.config
    rank = getattr(block, "rank", None)
    if rank is None:
        return None
    if isinstance(block, Loha):
        return int(rank) ** 2
    patterns: dict[str, int] = getattr(block, "rank_pattern", {})
    return max([int(rank), *patterns.values()])
