"""Which modules of a model a method touches, by PEFT's rules: all-linear, a list of name ends, a regular expression, or the architecture's defaults."""

import re
from collections.abc import Iterable

from finetune_api.estimate.modules import Architecture, Module
from finetune_api.methods import ALL_LINEAR, LoraFields, Method, Targeted
from finetune_api.peft_tables import default_targets


class TargetsError(ValueError):
    """The method's targetModules name nothing that it could adapt in this model."""


def targets(architecture: Architecture, method: Method) -> tuple[Module, ...]:
    """The modules that get an adapter; none for a method that adapts no modules of the base. Raises TargetsError.

    Source: peft/tuners/tuners_utils.py, ``check_target_module_exists`` and ``_maybe_include_all_linear_layers``.
    """
    block = method.config
    if not isinstance(block, Targeted):
        return ()
    candidates = [module for module in architecture.modules if _can_adapt(module, block)]
    kept = [module for module in candidates if not is_saved(module, block.modules_to_save)]
    wanted = block.target_modules
    if wanted == ALL_LINEAR:
        return tuple(module for module in kept if module.is_linear and module is not architecture.head)
    found = tuple(module for module in kept if _matches(module, wanted or _defaults(architecture, method)))
    if not found:
        exist = ", ".join(suffixes(module for module in candidates if module.is_linear))
        raise TargetsError(f"no module of the model matches {wanted or 'the defaults'}; it has: {exist}")
    return found


def is_saved(module: Module, modules_to_save: Iterable[str]) -> bool:
    """Whether modulesToSave names the module, or one that it is a part of: such a module is trained whole, and gets no adapter."""
    return any(re.match(rf"(^|.*\.){name}($|\..*)", module.name) for name in modules_to_save)


def suffixes(modules: Iterable[Module]) -> list[str]:
    """The last parts of the modules' names, each once, in the model's order."""
    return list(dict.fromkeys(module.name.rsplit(".", 1)[-1] for module in modules))


def _can_adapt(module: Module, block: Targeted) -> bool:
    return module.is_linear or (module.kind == "embedding" and isinstance(block, LoraFields))


def _matches(module: Module, wanted: str | list[str]) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module.name) is not None
    return any(module.name == name or module.name.endswith(f".{name}") for name in wanted)


def _defaults(architecture: Architecture, method: Method) -> str | list[str]:
    found = default_targets(method.name, architecture.model_type)
    if found is None:
        raise TargetsError(
            f"PEFT has no default modules of method {method.name} for model_type {architecture.model_type!r}: write targetModules"
        )
    return found
