"""What an adapted model says of its adapter: how many parameters are trained, and in which modules."""

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from finetune_trainer.methods.bottleneck import Adapted


def count_trainable(model: Any) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapted_suffixes(model: Any) -> list[str]:
    """The last parts of the names of the modules that carry an adapter, sorted."""
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer | Adapted)
        }
    )
