"""Choose the modules that get an adapter if the user names none, as the preflight and the estimate do."""

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from finetune_api import methods as api
from finetune_api import roles, targets
from finetune_api.linear import is_embedding_or_head
from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure


def list_routers(model: Any) -> set[str]:
    """List the last name parts of linear routers that return several tensors, as in Llama 4.

    PEFT's ``all-linear`` treats them as plain linear layers, and the first step then fails.
    """
    return {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module).__name__.endswith("Router")
    }


def resolve(model: Any, method: api.Method) -> api.Method:
    """Return the method with the names of its modules.

    Raises:
        Failure: TARGET_MODULES_NOT_FOUND if there are no defaults for the model.
    """
    block = method.config
    if not isinstance(block, api.Targeted):
        return method
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and not is_embedding_or_head(name)
    ]
    model_type, has_experts = model.config.model_type, roles.has_experts(name for name, _ in model.named_parameters())
    try:
        chosen = targets.resolve_targets(linear, block, method.name, model_type, has_experts=has_experts)
        if chosen == api.ALL_LINEAR and (routers := list_routers(model)):
            chosen = [name for name in roles.suffixes(linear) if name not in routers]
        changes: dict[str, Any] = {"target_modules": chosen}
        if isinstance(block, api.Ia3):
            adapted = targets.select_modules(linear, block, method.name, model_type, has_experts=has_experts)
            changes["feedforward_modules"] = targets.resolve_feedforward(adapted, block, model_type)
    except targets.TargetError as error:
        field = f"spec.method.{method.name}.{error.field}"
        raise Failure(Reason.TARGET_MODULES_NOT_FOUND, str(error), field) from error
    return method.model_copy(update={method.name: block.model_copy(update=changes)})
