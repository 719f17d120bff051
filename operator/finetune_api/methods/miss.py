"""Define MiSS: one trained shard for all of a matrix (peft.MissConfig)."""

from collections.abc import Container, Sequence
from typing import ClassVar

from pydantic import Field

from finetune_api.estimate.modules import Module
from finetune_api.estimate.step import Step
from finetune_api.methods.block import Rate, Targeted


class Miss(Targeted):
    """Matrix shard sharing (peft.MissConfig)."""

    peft_type: ClassVar[str] = "MISS"
    default_learning_rate: ClassVar[float] = 1e-4
    adapts_conv1d: ClassVar[bool] = False

    rank: int = Field(64, description="Rank r of the shared shard.", ge=1, le=512)
    dropout: Rate = Field(0.0, description="Dropout on the adapter's input.")

    def count_module_parameters(self, module: Module, scaled: Container[str]) -> int:
        """Return the numbers in one shard (r × out): Kang and Yin 2024, section 3; peft/tuners/miss/layer.py."""
        return self.rank * module.outputs

    def saved_bytes_per_token(self, adapted: Sequence[Module], scaled: Container[str], step: Step) -> float:
        """Return the bytes of the summed inputs and of the dropout's mask."""
        mask = sum(module.inputs for module in adapted) if self.dropout else 0
        return step.element * len(adapted) * self.rank + mask
