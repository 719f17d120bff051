"""Warn before the training of engines that cannot serve the adapter."""

from collections.abc import Iterable

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.methods import Targeted
from finetune_api.targets import find_converted_experts
from finetune_engines import list_refusals
from finetune_engines.prediction import predict_adapter_config


def list_serving_warnings(spec: FineTuneJobSpec, model_type: str, tensors: Iterable[str]) -> list[str]:
    """List warnings about engines that cannot serve the adapter; none for a merged or fully trained model.

    Args:
        spec: The job's spec.
        model_type: ``model_type`` of the model's config.json.
        tensors: Names of the model's weights.
    """
    block = spec.method.config
    if block.trains_all_weights or spec.output.merged_model:
        return []
    refusals = list_refusals(predict_adapter_config(spec))
    warnings = [f"{title} will not serve the adapter: {problems}" for title, problems in refusals.items()]
    if isinstance(block, Targeted) and (names := find_converted_experts(block, model_type, tensors)):
        engines = " and ".join(list_refusals({"peft_type": "LORA", "target_parameters": names}))
        warnings.append(
            f"spec.method.{spec.method.name}.targetModules: {', '.join(names)} adapts the experts or the router of a "
            f"model of type {model_type!r}, and {engines} will not serve the adapter: set it to auto, or name layers "
            "of the attention, or set output.mergedModel"
        )
    return warnings
