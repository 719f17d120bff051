"""Define bottleneck adapters: small layers in series with those of the base."""

import math
from typing import ClassVar, Literal

from pydantic import Field

from finetune_api.estimate.modules import Architecture, NotCountedError
from finetune_api.estimate.step import Step, cast_bytes
from finetune_api.limits import MAX_NUMBER
from finetune_api.methods.block import Block, Rate


class Bottleneck(Block):
    """Small layers in series with those of the base: Houlsby et al. 2019, Pfeiffer et al. 2020."""

    peft_type: ClassVar[str] = "BOTTLENECK"
    default_learning_rate: ClassVar[float] = 1e-4
    is_mergeable: ClassVar[bool] = False

    placement: Literal["houlsby", "pfeiffer"] = Field(
        "houlsby", description="houlsby: after attention and feed-forward; pfeiffer: after feed-forward only."
    )
    reduction_factor: float = Field(
        16, description="Hidden size of the model divided by that of the adapter layer.", ge=1, le=MAX_NUMBER
    )
    non_linearity: Literal["relu", "gelu", "silu"] = Field("relu", description="Activation between the two matrices.")
    dropout: Rate = Field(0.0, description="Dropout on the adapter layer's input.")

    @property
    def layers_per_block(self) -> int:
        """Return how many adapter layers each transformer layer gets."""
        return 2 if self.placement == "houlsby" else 1

    def width_of(self, architecture: Architecture) -> int:
        """Return the width of an adapter layer."""
        return max(1, math.floor(architecture.hidden / self.reduction_factor))

    def count_parameters(self, architecture: Architecture) -> int:
        """Return two matrices with biases per adapter layer: Houlsby et al. 2019, 2.1; Pfeiffer et al. 2020, 3."""
        if architecture.experts:
            raise NotCountedError("a bottleneck adapter has no place in a mixture of experts: use lora")
        width, hidden = self.width_of(architecture), architecture.hidden
        per_layer = hidden * width + width + width * hidden + hidden
        return architecture.layers * per_layer * self.layers_per_block

    def saved_bytes(self, architecture: Architecture, step: Step) -> tuple[float, float]:
        """Return the bytes per token of each adapter layer's tensors, and those of its cast weights."""
        width, times = self.width_of(architecture), self.layers_per_block
        per_token = times * step.element * (architecture.hidden + 2 * width)
        return per_token, cast_bytes(times * 2 * architecture.hidden * width, step)
