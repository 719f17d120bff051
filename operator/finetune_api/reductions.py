"""Define the changes that lower a job's need for memory, in the order in which they are made and proposed.

The operator makes those with a ``policy`` by itself after an attempt that ran out of memory (finetune_api.ladder).
The estimate proposes all of them (finetune_api.estimate.remedies).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec, Training
from finetune_api.methods import Lora, Method

SMALL_OPTIMIZER = "paged_adamw_8bit"
SHORTEST = 512
"""Lowest value to which maxLength is reduced."""


@dataclass(frozen=True)
class Settings:
    """The part of a job that reductions change."""

    method: Method
    training: Training
    smallest_batch: int = 1
    """Least perDeviceBatchSize: 2 for objective kto, which compares the rows of a batch."""

    def with_training(self, **values: Any) -> "Settings":
        """Return a copy with other fields of ``training``."""
        return Settings(self.method, self.training.model_copy(update=values), self.smallest_batch)

    def with_method(self, method: Method) -> "Settings":
        """Return a copy with another method."""
        return Settings(method, self.training, self.smallest_batch)


@dataclass(frozen=True)
class Reduction:
    """One kind of change that lowers the need for memory."""

    apply: Callable[[Settings], Settings | None]
    """Return the settings after one step; None if there is none left."""
    effect: str
    """What else changes, for people."""
    policy: str = ""
    """Field of ``failurePolicy.outOfMemory`` that allows the operator to make it; empty: only the user makes it."""


def smallest_batch(spec: FineTuneJobSpec) -> int:
    """Return the least perDeviceBatchSize of the job's objective."""
    return 2 if spec.objective == "kto" else 1


def _halve_batch(settings: Settings) -> Settings | None:
    """Reduce the batch to its largest divisor that is at most half of it, and accumulate over more micro-steps."""
    batch = settings.training.batch_size
    smaller = next((size for size in range(batch // 2, settings.smallest_batch - 1, -1) if batch % size == 0), None)
    if smaller is None:
        return None
    accumulation = settings.training.accumulation_steps * (batch // smaller)
    return settings.with_training(per_device_batch_size=smaller, gradient_accumulation_steps=accumulation)


def _enable_checkpointing(settings: Settings) -> Settings | None:
    """Turn gradient checkpointing on; None for prefix tuning (peft/peft_model.py, ``_setup_prompt_encoder``)."""
    block = settings.method.config
    if settings.training.gradient_checkpointing == "always" or block.prepends_keys_and_values:
        return None
    return settings.with_training(gradient_checkpointing="always")


def _shrink_optimizer(settings: Settings) -> Settings | None:
    if settings.training.optimizer == SMALL_OPTIMIZER:
        return None
    return settings.with_training(optimizer=SMALL_OPTIMIZER)


def _shorten(settings: Settings) -> Settings | None:
    if settings.training.max_length < 2 * SHORTEST:
        return None
    return settings.with_training(max_length=settings.training.max_length // 2)


def _train_adapter(settings: Settings) -> Settings | None:
    return settings.with_method(Method(lora=Lora())) if settings.method.config.trains_all_weights else None


def _quantize(settings: Settings) -> Settings | None:
    """Hold the base in 4 bits; None for a sharded base, which cannot be quantised."""
    method = settings.method.quantize() if settings.training.sharding == "none" else None
    return None if method is None else settings.with_method(method)


REDUCTIONS = (
    Reduction(_halve_batch, "the same effective batch, somewhat slower", policy="reduceBatchSize"),
    Reduction(_enable_checkpointing, "the same result, about a third slower", policy="enableGradientCheckpointing"),
    Reduction(_shrink_optimizer, "nearly the same result: the optimizer's moments are rounded to 8 bits"),
    Reduction(_shorten, "longer rows are cut: look at the dataset's token lengths first"),
    Reduction(_train_adapter, "an adapter instead of all weights: often as good, and far smaller"),
    Reduction(_quantize, "the base is rounded to 4 bits: slightly worse, and slower", policy="quantize"),
)
"""All reductions, the one that costs least first. Each is repeated until it has no step left."""
