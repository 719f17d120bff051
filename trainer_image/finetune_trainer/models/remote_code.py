"""Refuse a model that needs Python code of its own, unless the user trusts it. Nothing is run here."""

from typing import Any

from finetune_api import transformers_tables
from finetune_api.finetunejob import ModelSource
from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure

FIELD = "spec.model.trustRemoteCode"


def check_remote_code(config: dict[str, Any], model: ModelSource) -> None:
    """Check by the config.json that the model needs no code of its own, or that the user trusts it.

    Raises:
        Failure: MODEL_UNSUPPORTED if the model needs code that is not trusted.
    """
    own_classes, model_type = config.get("auto_map"), str(config.get("model_type"))
    if not own_classes or model.trust_remote_code or transformers_tables.is_known(model_type):
        return
    names = sorted(map(str, own_classes.values())) if isinstance(own_classes, dict) else [str(own_classes)]
    raise Failure(
        Reason.MODEL_UNSUPPORTED,
        f"the model brings code of its own ({', '.join(names)[:200]}), which is not run, and transformers "
        f"{transformers_tables.version()} has none for models of type {model_type!r}: choose a model that "
        f"transformers knows, or, if you trust whoever can change {model.uri}, set it to true, "
        "which the cluster's administrator has to allow (chart value trainer.allowRemoteCode)",
        FIELD,
    )
