"""Tell before the training which engines cannot serve the adapter that the job makes."""

from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.methods import Dora, Loha, Peft, Targeted
from finetune_engines import highest_rank, list_refusals

CONVERTED = ("ADALORA", "VERA", "MISS", "LOHA", "LOKR")
"""PEFT types that are published as a plain LoRA, unless their rank is too high for the engines."""


def list_serving_warnings(spec: FineTuneJobSpec) -> list[str]:
    """List for each engine what it cannot serve of the adapter; nothing for a model that is merged or fully trained."""
    if spec.method.full is not None or spec.output.merged_model:
        return []
    refusals = list_refusals(predict_adapter_config(spec))
    return [f"{title} will not serve the adapter: {problems}" for title, problems in refusals.items()]


def predict_adapter_config(spec: FineTuneJobSpec) -> dict[str, Any]:
    """Return what the published adapter_config.json will say that engines look at."""
    block, kind = spec.method.config, spec.method.peft_type
    if isinstance(block, Peft):
        return {**block.options, "peft_type": kind}
    saved = [*block.modules_to_save] if isinstance(block, Targeted) else []
    saved += ["score"] if spec.objective == "reward" else []
    bias = getattr(block, "bias", "none")
    rank = getattr(block, "rank", 1) ** (2 if isinstance(block, Loha) else 1)
    if kind in CONVERTED and not saved and bias == "none" and rank <= highest_rank():
        kind = "LORA"
    return {"peft_type": kind, "use_dora": isinstance(block, Dora), "bias": bias, "modules_to_save": saved}
