"""Report how many parameters of an adapted model are trained, and in which modules."""

import copy
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from finetune_api.reasons import Reason
from finetune_trainer.methods import adapted_model
from finetune_trainer.methods.bottleneck import BottleneckLayer
from finetune_trainer.runtime.failures import Failure


def count_trainable(model: Any) -> int:
    """Count the parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapted_suffixes(model: Any) -> list[str]:
    """Return the last parts of the names of the adapted modules, sorted."""
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer | BottleneckLayer)
        }
    )


def refuse_unmergeable(model: Any) -> None:
    """Merge a copy of one layer, to refuse a method that cannot be merged before the training.

    Raises:
        Failure: SPEC_INVALID: PEFT cannot merge the method.
    """
    layer = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    try:
        copy.deepcopy(layer).merge(safe_merge=True)  # type: ignore[union-attr]
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        kind = adapted_model.peft_type(model)
        raise Failure(
            Reason.SPEC_INVALID, f"PEFT cannot merge {kind} ({error}): set it to false", "spec.output.mergedModel"
        ) from error
