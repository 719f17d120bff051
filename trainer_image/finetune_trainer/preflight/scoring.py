"""Refuse a model for which transformers has no model with a score, which objective reward trains."""

from collections.abc import Mapping
from typing import Any

from finetune_trainer.models.shapes import language_config

CHOOSE = "choose a model of another type, such as llama, mistral, qwen2 or qwen3"


def describe_without_score(config: Mapping[str, Any]) -> str | None:
    """Describe why objective reward cannot train this model; None if it can.

    Args:
        config: The config.json.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    model_type, code = str(config.get("model_type")), config.get("auto_map") or {}
    if "AutoModelForSequenceClassification" in code:
        return None
    if model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return (
            f"objective reward needs a model that scores texts, and transformers has none of type {model_type!r} "
            f"(no AutoModelForSequenceClassification): {CHOOSE}"
        )
    if language_config(config) is not config:
        return (
            f"objective reward needs a model of text alone, and one of type {model_type!r} has other parts beside its "
            f"language model: {CHOOSE}"
        )
    return None
