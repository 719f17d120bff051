"""Define OFT: learned rotations of weights (peft.OFTConfig)."""

from collections.abc import Container
from typing import ClassVar

from pydantic import Field

from finetune_api.estimate.modules import Module
from finetune_api.estimate.step import Step
from finetune_api.limits import MAX_COUNT, MAX_NUMBER
from finetune_api.methods.block import Rate, Targeted

CAYLEY_COPIES = 7
"""Powers of the skew-symmetric matrix that its Cayley-Neumann series keeps (peft/tuners/oft/layer.py)."""


class Oft(Targeted):
    """Orthogonal fine-tuning: learned rotations of the weights (peft.OFTConfig)."""

    peft_type: ClassVar[str] = "OFT"
    default_learning_rate: ClassVar[float] = 1e-4
    adapts_conv1d: ClassVar[bool] = False
    transient_bytes: ClassVar[int] = 15

    oft_block_size: int = Field(
        32,
        description="Size of the rotated blocks. For a module whose input it does not divide, the nearest divisor of "
        "the input is used.",
        ge=2,
        le=MAX_COUNT,
    )
    module_dropout: Rate = Field(0.0, description="Probability that a block is not rotated in a step.")
    coft: bool = Field(False, description="Keep the rotations close to the identity (constrained OFT).")
    eps: float | None = Field(
        None,
        description="With coft: allowed distance from the identity. Unset: PEFT's default, 0.00006.",
        gt=0,
        le=MAX_NUMBER,
    )
    block_share: bool = Field(False, description="Rotate all blocks of a module alike.")

    def block_size_of(self, module: Module) -> int:
        """Return the divisor of the module's input that is nearest to ``oftBlockSize`` (PEFT's oft/layer.py).

        Of two equally near ones it is the smaller.
        """
        target, inputs = self.oft_block_size, module.inputs
        if target >= inputs:
            return inputs
        lower = next(size for size in range(target, 0, -1) if inputs % size == 0)
        higher = next(size for size in range(target, inputs + 1) if inputs % size == 0)
        return lower if target - lower <= higher - target else higher

    def count_module_parameters(self, module: Module, scaled: Container[str]) -> int:
        """Return half of a skew-symmetric b × b matrix for each block, or one for all: Qiu et al. 2023, section 3."""
        size = self.block_size_of(module)
        return (1 if self.block_share else module.inputs // size) * size * (size - 1) // 2

    def saved_bytes_per_module(self, module: Module, scaled: Container[str], step: Step) -> float:
        """Return the bytes of the series that makes the rotation."""
        return CAYLEY_COPIES * 2 * module.inputs * self.block_size_of(module)
