"""Define VeRA: learned scaling of shared random matrices (peft.VeraConfig)."""

from collections.abc import Container, Sequence
from typing import ClassVar

from pydantic import Field

from finetune_api.estimate.modules import Module
from finetune_api.estimate.step import Step
from finetune_api.limits import MAX_NUMBER, MAX_SEED
from finetune_api.methods.block import Rate, Targeted


class Vera(Targeted):
    """Learned scaling of random matrices that all modules share (peft.VeraConfig)."""

    peft_type: ClassVar[str] = "VERA"
    default_learning_rate: ClassVar[float] = 4e-3
    transient_bytes: ClassVar[int] = 12

    rank: int = Field(256, description="Rank r of the shared random matrices.", ge=1, le=4096)
    dropout: Rate = Field(0.0, description="Dropout on the adapter's input.")
    d_initial: float = Field(0.1, description="Initial value of the trained vector d.", gt=0, le=MAX_NUMBER)
    projection_prng_key: int = Field(0, description="Seed of the shared random matrices.", ge=0, le=MAX_SEED)

    def count_module_parameters(self, module: Module, scaled: Container[str]) -> int:
        """Return the size of d (r) and b (out). The shared matrices are frozen (Kopiczko et al. 2023, section 3.1)."""
        return self.rank + module.outputs

    def saved_bytes_per_token(self, adapted: Sequence[Module], scaled: Container[str], step: Step) -> float:
        """Return the bytes of both scaled products and of the dropout's mask."""
        outputs = sum(module.outputs for module in adapted)
        mask = sum(module.inputs for module in adapted) if self.dropout else 0
        return step.element * (outputs + len(adapted) * self.rank) + mask

    def saved_bytes_per_module(self, module: Module, scaled: Container[str], step: Step) -> float:
        """Return the bytes of the cast slices of the shared matrices."""
        return step.element * self.rank * (module.inputs + module.outputs) if step.mixed else 0

    def state_bytes(self, trainable: int, adapted: Sequence[Module]) -> float:
        """Return the bytes of the two shared matrices in fp32."""
        return 4 * self.rank * (max(m.inputs for m in adapted) + max(m.outputs for m in adapted))
