"""Which modules of a described model a method touches."""

import re
from collections.abc import Iterable

from finetune_api import targets as names
from finetune_api.estimate.modules import Architecture, Module
from finetune_api.methods import Ia3, Method, Targeted


def targets(architecture: Architecture, method: Method) -> tuple[Module, ...]:
    """The modules that get an adapter; none for a method that adapts no modules of the base. Raises TargetError."""
    block = method.config
    if not isinstance(block, Targeted):
        return ()
    linear = {m.name: m for m in architecture.modules if m.is_linear and m is not architecture.head}
    chosen = names.adapted(list(linear), block, method.name, architecture.model_type)
    return tuple(linear[name] for name in chosen)


def scaled_inputs(architecture: Architecture, method: Method) -> frozenset[str]:
    """The names of the modules whose input IA³ scales, instead of their output; none for another method. Raises TargetError."""
    block = method.config
    if not isinstance(block, Ia3):
        return frozenset()
    adapted = [module.name for module in targets(architecture, method)]
    return frozenset(names.feedforward(adapted, block, architecture.model_type))


def is_saved(module: Module, modules_to_save: Iterable[str]) -> bool:
    """Whether modulesToSave names the module, or one that it is a part of: such a module is trained whole."""
    return any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module.name) for name in modules_to_save)
