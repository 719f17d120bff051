"""Define IA³: learned scaling of activations (peft.IA3Config)."""

from collections.abc import Container, Sequence
from typing import ClassVar

from pydantic import Field

from finetune_api.estimate.modules import Module
from finetune_api.estimate.step import Step
from finetune_api.methods.block import Targeted, targets_field


class Ia3(Targeted):
    """Learned scaling of keys, values and feed-forward activations (peft.IA3Config)."""

    peft_type: ClassVar[str] = "IA3"
    default_learning_rate: ClassVar[float] = 5e-3
    transient_bytes: ClassVar[int] = 13

    target_modules: str | list[str] = targets_field([])
    feedforward_modules: list[str] | None = Field(
        None,
        description="The targetModules whose input is scaled instead of their output, by module name suffix. Unset: "
        "the architecture's defaults in PEFT or, where it has none, the end of the feed-forward network.",
    )

    def count_module_parameters(self, module: Module, scaled: Container[str]) -> int:
        """Return one scale per input or output feature: Liu et al. 2022, section 3.3."""
        return module.inputs if module.name in scaled else module.outputs

    def saved_bytes_per_token(self, adapted: Sequence[Module], scaled: Container[str], step: Step) -> float:
        """Return the bytes of the scaled inputs, in fp32, and of the scaled outputs."""
        inputs = sum(module.inputs for module in adapted if module.name in scaled)
        outputs = sum(module.outputs for module in adapted if module.name not in scaled)
        return 4 * inputs + step.element * outputs

    def saved_bytes_per_module(self, module: Module, scaled: Container[str], step: Step) -> float:
        """Return the bytes of the scales in fp32."""
        return 4 * self.count_module_parameters(module, scaled)
