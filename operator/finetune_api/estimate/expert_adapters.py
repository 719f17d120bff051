"""Which experts a LoRA adapts: PEFT turns names of linear layers into the parameters that transformers 5 has instead.

Source: peft/utils/transformers_weight_conversion.py, ``_convert_peft_config_moe``.
"""

import re
from dataclasses import dataclass

from finetune_api.estimate.modules import Architecture, Module, NotCountedError
from finetune_api.methods import ALL_LINEAR, Dora, LoraFields, Method
from finetune_api.targets import TargetError

_LLAMA_NAMES = {"gate": "router", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
CONVERTED: dict[str, dict[str, str]] = {
    "mixtral": {"gate": "router", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"},
    "qwen3_moe": _LLAMA_NAMES,
    "deepseek_v3": _LLAMA_NAMES,
}
"""Old names of the router's and the experts' layers, by ``model_type``. PEFT converts them in these models only."""


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
        TargetError: PEFT refuses to adapt a part of a fused parameter.
    """
    block, names = method.config, CONVERTED.get(architecture.model_type, {})
    if not isinstance(block, LoraFields) or block.peft_type != "LORA" or not names:
        return frozenset()
    targets = block.target_modules
    if targets == ALL_LINEAR:
        found = frozenset(names)
    elif isinstance(targets, str):
        if any(re.fullmatch(targets, module.name) for module in architecture.modules if _is_converted(module, names)):
            raise NotCountedError("the estimate has no closed form for a regular expression that names experts")
        return frozenset()
    else:
        found = frozenset(names) & frozenset(targets)
    fused = {name for name, parameter in names.items() if parameter == "gate_up_proj"}
    if found & fused and not fused <= found:
        raise TargetError(
            "targetModules",
            f"{' and '.join(sorted(fused))} are one parameter in transformers: name both of them, or neither",
        )
    if found and isinstance(block, Dora):
        raise NotCountedError("PEFT's DoRA does not adapt experts: use lora, or name the attention's layers")
    if found and (block.rank_pattern or block.dropout):
        raise NotCountedError("the estimate has no closed form for experts with a rankPattern or with dropout")
    return found


def adapted_experts(architecture: Architecture, method: Method) -> tuple[ExpertAdapter, ...]:
    """Return the adapted parameters of experts and the adapted routers; none for a method that adapts none.

    Raises:
        NotCountedError: There is no closed form for these targets.
        TargetError: PEFT refuses to adapt a part of a fused parameter.
    """
    names, block = CONVERTED.get(architecture.model_type, {}), method.config
    chosen = {names[name] for name in converted_names(architecture, method)}
    if not isinstance(block, LoraFields):
        return ()
    adapters = []
    for module in architecture.modules:
        last = module.name.rsplit(".", 1)[-1]
        if module.kind == "router" and "router" in chosen:
            adapters.append(ExpertAdapter(module, block.rank, module.inputs, module.outputs, 1))
        elif module.kind == "parameter" and last in chosen:
            # the rank is doubled where two layers became one parameter
            ranks = block.rank * architecture.experts * (2 if last == "gate_up_proj" else 1)
            inputs, uses = module.inputs // architecture.experts, architecture.experts_per_token
            adapters.append(ExpertAdapter(module, ranks, inputs, module.outputs, uses))
    return tuple(adapters)


def _is_converted(module: Module, names: dict[str, str]) -> bool:
    return module.kind in ("parameter", "router") or module.name.rsplit(".", 1)[-1] in names
