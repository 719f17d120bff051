"""Check an adapted model: every name of targetModules and modulesToSave has matched a module of the loaded model.

PEFT is content if one of the names matches. The others are then not trained, and nothing says so.
"""

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper

from finetune_api import peft_tables, roles
from finetune_api.methods import Method, Peft, Targeted
from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure


def check_all_matched(adapted: Any, method: Method) -> None:
    """Check that every name of the method has matched.

    Args:
        adapted: The model that ``peft.get_peft_model`` returned.
        method: The method of the job, with the user's names.

    Raises:
        Failure: TARGET_MODULES_NOT_FOUND: a name has matched nothing.
    """
    names, path = _list_names(method), f"spec.method.{method.name}"
    layers, saved = _list_modules(adapted, BaseTunerLayer), _list_modules(adapted, ModulesToSaveWrapper)
    experts = peft_tables.converted_experts(str(getattr(adapted.config, "model_type", "")))
    for field, wanted in names.items():
        missing = [name for name in wanted if not any(module.endswith(name) for module in saved)]
        if "save" not in field.lower():
            missing = [
                name
                for name in missing
                if not any(roles.ends_with(layer, name) for layer in layers) and roles.last_part(name) not in experts
            ]
        if missing:
            existing = roles.suffixes(
                name for name, module in adapted.get_base_model().named_modules() if _has_weight(module)
            )
            raise Failure(
                Reason.TARGET_MODULES_NOT_FOUND,
                f"the loaded model has no module named {', '.join(missing)}, so that it would not be trained. Modules "
                f"with weights are named {', '.join(existing)}: choose among these, or remove {', '.join(missing)}",
                f"{path}.{field}",
            )


def _list_names(method: Method) -> dict[str, list[str]]:
    """Return the lists of names that the user wrote, by their fields."""
    block = method.config
    if isinstance(block, Targeted):
        fields: dict[str, Any] = {"targetModules": block.target_modules, "modulesToSave": block.modules_to_save}
    elif isinstance(block, Peft):
        fields = {f"options.{key}": block.options.get(key) for key in ("target_modules", "modules_to_save")}
    else:
        fields = {}
    return {field: names for field, names in fields.items() if isinstance(names, list)}


def _list_modules(adapted: Any, kind: type[Any]) -> list[str]:
    """List the names of the adapted or saved modules as the base has them."""
    return [
        name.removeprefix("base_model.model.").replace(".base_layer", "")
        for name, module in adapted.named_modules()
        if isinstance(module, kind)
    ]


def _has_weight(module: Any) -> bool:
    return next(iter(module.parameters(recurse=False)), None) is not None
