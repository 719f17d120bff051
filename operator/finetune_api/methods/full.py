"""Define full fine-tuning: all weights of the model are trained."""

from typing import ClassVar

from finetune_api.methods.block import Block


class Full(Block):
    """All weights of the model are trained; the result is a model, not an adapter."""

    peft_type: ClassVar[str] = "FULL"
    default_learning_rate: ClassVar[float] = 1e-5
    trains_all_weights: ClassVar[bool] = True
    adapter_is_complete: ClassVar[bool] = False
    gains_from_compilation: ClassVar[bool] = True
