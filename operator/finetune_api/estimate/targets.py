"""Find the modules of an architecture that a method adapts."""

from finetune_api.estimate.expert_adapters import converted_names
from finetune_api.estimate.modules import Architecture, Module
from finetune_api.methods import Ia3, Method, Targeted
from finetune_api.targets import select_feedforward, select_modules


def adapted_modules(architecture: Architecture, method: Method) -> tuple[Module, ...]:
    """Return the modules that get an adapter; none for a method that adapts no modules of the base.

    Raises:
        TargetError: The method names a module that the model does not have.
        NotCountedError: There is no closed form for the experts that the method adapts.
    """
    block = method.config
    if not isinstance(block, Targeted):
        return ()
    linear = {m.name: m for m in architecture.modules if m.is_linear and m is not architecture.head}
    chosen = select_modules(
        list(linear),
        block,
        method.name,
        architecture.model_type,
        has_experts=architecture.experts > 0,
        experts=converted_names(architecture, method),
    )
    return tuple(linear[name] for name in chosen)


def scaled_inputs(architecture: Architecture, method: Method) -> frozenset[str]:
    """Return the names of the modules whose input IA³ scales; none for another method.

    Raises:
        TargetError: The method names a module that the model does not have.
    """
    block = method.config
    if not isinstance(block, Ia3):
        return frozenset()
    adapted = [module.name for module in adapted_modules(architecture, method)]
    return frozenset(select_feedforward(adapted, block, architecture.model_type))
