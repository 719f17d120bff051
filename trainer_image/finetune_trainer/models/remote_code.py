"""A model that brings Python code of its own: refused, unless the user asks for it to run. Decided from its configuration alone; nothing is imported or run."""

from typing import Any

from finetune_api import transformers_tables
from finetune_api.finetunejob import ModelSource
from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure

FIELD = "spec.model.trustRemoteCode"


def check_remote_code(config: dict[str, Any], model: ModelSource) -> None:
    """Why a model with this config.json is not loaded; None for one that needs no code of its own, or whose code is trusted."""
    brought, model_type = config.get("auto_map"), str(config.get("model_type"))
    if not brought or model.trust_remote_code or transformers_tables.is_known(model_type):
        return
    names = sorted(str(name) for name in brought.values()) if isinstance(brought, dict) else [str(brought)]
    raise Failure(
        Reason.MODEL_UNSUPPORTED,
        f"the model brings code of its own ({', '.join(names)[:200]}), which is not run, and transformers {transformers_tables.version()} has none for models of "
        f"type {model_type!r}: choose a model that transformers knows, or, if you trust whoever can change {model.uri}, set it to true, which the cluster's "
        "administrator has to allow (chart value trainer.allowRemoteCode)",
        FIELD,
    )
