"""Find the experts that a LoRA adapts: PEFT maps names of linear layers to the parameters of transformers 5.

Source: peft/utils/transformers_weight_conversion.py, ``_convert_peft_config_moe``.
"""

import re
from dataclasses import dataclass

from finetune_api import peft_tables
from finetune_api.estimate.modules import Architecture, Module, NotCountedError
from finetune_api.methods import ALL_LINEAR, LoraFields, Method
from finetune_api.roles import last_part
from finetune_api.targets import check_experts

ROUTER = "gate.weight"
"""PEFT's name of the router's parameter."""


@dataclass(frozen=True)
class ExpertAdapter:
    """The LoRA of one parameter.

    Attributes:
        module: The parameter.
        ranks: The ranks of all pairs of matrices A and B, added up.
        inputs: Input features of one expert.
        outputs: Output features of one expert.
        uses_per_token: How many experts compute a token; 1 for the router.
    """

    module: Module
    ranks: int
    inputs: int
    outputs: int
    uses_per_token: int

    @property
    def parameters(self) -> int:
        """Return the numbers in all pairs."""
        return self.ranks * (self.inputs + self.outputs)


def converted_names(architecture: Architecture, method: Method) -> frozenset[str]:
    """Return the last parts of the names that PEFT takes for those of experts; none where it converts nothing.

    Raises:
        NotCountedError: There is no closed form for these targets.
        TargetError: PEFT refuses to adapt a part of a fused parameter, or to adapt experts with an option.
    """
    block, names = method.config, peft_tables.converted_experts(architecture.model_type)
    if not isinstance(block, LoraFields) or block.peft_type != "LORA" or not names:
        return frozenset()
    targets = block.target_modules
    if targets == ALL_LINEAR:
        targeted = frozenset(names)
    elif isinstance(targets, str):
        if any(re.fullmatch(targets, module.name) for module in architecture.modules if _is_converted(module, names)):
            raise NotCountedError("the estimate has no closed form for a regular expression that names experts")
        return frozenset()
    else:
        targeted = frozenset(names) & set(map(last_part, targets))
    if targeted:
        check_experts(targeted, block, architecture.model_type)
    if targeted and block.rank_pattern:
        raise NotCountedError("the estimate has no closed form for experts with a rankPattern")
    return targeted


def adapted_experts(architecture: Architecture, method: Method) -> tuple[ExpertAdapter, ...]:
    """Return the adapted parameters of experts and the adapted routers; none for a method that adapts none.

    Raises:
        NotCountedError: There is no closed form for these targets.
        TargetError: PEFT refuses to adapt a part of a fused parameter, or to adapt experts with an option.
    """
    names, block = peft_tables.converted_experts(architecture.model_type), method.config
    chosen = {names[name] for name in converted_names(architecture, method)}
    if not isinstance(block, LoraFields):
        return ()
    adapters = []
    for module in architecture.modules:
        last = last_part(module.name)
        if last == "gate" and ROUTER in chosen and (module.kind == "router" or module.is_linear):
            adapters.append(ExpertAdapter(module, block.rank, module.inputs, module.outputs, 1))
        elif module.kind == "parameter" and last in chosen:
            # the rank is doubled where two layers became one parameter
            ranks = block.rank * architecture.experts * (2 if last == "gate_up_proj" else 1)
            inputs, uses = module.inputs // architecture.experts, architecture.experts_per_token
            adapters.append(ExpertAdapter(module, ranks, inputs, module.outputs, uses))
    return tuple(adapters)


def _is_converted(module: Module, names: dict[str, str]) -> bool:
    return module.kind in ("parameter", "router") or last_part(module.name) in names
