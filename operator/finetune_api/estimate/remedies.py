"""What to change in a job so that it needs less memory: one change after another, what costs least first."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api.estimate.memory import memory
from finetune_api.estimate.modules import Architecture
from finetune_api.finetunejob import Training
from finetune_api.methods import Dora, Full, Lora, Method, PrefixTuning, Qlora, Quantization

SHORTEST = 512
"""maxLength is not proposed below this."""
WORTH = 0.97
"""A change that leaves more of the memory than this is not worth saying."""


@dataclass(frozen=True)
class Change:
    """One change on top of those before it: fields of the spec with their new values, why it is harmless or not, and the bytes that are needed then."""

    fields: dict[str, Any]
    effect: str
    bytes: int


def changes(architecture: Architecture, method: Method, training: Training) -> list[Change]:
    """The changes that lower the memory, each with all that precede it. Raises TargetsError and NotCountedError."""
    found: list[Change] = []
    needed = memory(architecture, method, training).total
    for fields, effect, other_method, other_training in _steps(method, training):
        total = memory(architecture, other_method, other_training).total
        if total <= WORTH * needed:
            found.append(Change(fields, effect, total))
            needed = total
    return found


Step = tuple[dict[str, Any], str, Method, Training]


def _steps(method: Method, training: Training) -> Iterator[Step]:
    batch = training.per_device_batch_size
    while batch > 1:
        smaller = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)
        accumulation = training.gradient_accumulation_steps * (batch // smaller)
        training = _with(training, per_device_batch_size=smaller, gradient_accumulation_steps=accumulation)
        batch = smaller
        yield (
            {"spec.training.perDeviceBatchSize": smaller, "spec.training.gradientAccumulationSteps": accumulation},
            "the same effective batch, somewhat slower",
            method,
            training,
        )
    if not training.gradient_checkpointing and not isinstance(method.config, PrefixTuning):
        training = _with(training, gradient_checkpointing=True)
        yield (
            {"spec.training.gradientCheckpointing": True},
            "the same result, about a third slower",
            method,
            training,
        )
    if training.optimizer != "paged_adamw_8bit":
        training = _with(training, optimizer="paged_adamw_8bit")
        yield (
            {"spec.training.optimizer": "paged_adamw_8bit"},
            "nearly the same result: the optimizer's moments are rounded to 8 bits",
            method,
            training,
        )
    while training.max_length >= 2 * SHORTEST:
        training = _with(training, max_length=training.max_length // 2)
        yield (
            {"spec.training.maxLength": training.max_length},
            "longer rows are cut: look at the dataset's token lengths first",
            method,
            training,
        )
    yield from _smaller_base(method, training)


def _smaller_base(method: Method, training: Training) -> Iterator[Step]:
    block = method.config
    if isinstance(block, Full):
        block = Lora()
        yield (
            {"spec.method": {"lora": {}}},
            "an adapter instead of all weights: often as good, and far smaller",
            Method(lora=block),
            training,
        )
    if isinstance(block, Dora) and block.quantization is None:
        quantised = block.model_copy(update={"quantization": Quantization()})
        yield (
            {"spec.method.dora.quantization": {}},
            "the base is rounded to 4 bits: slightly worse, and slower",
            Method(dora=quantised),
            training,
        )
    if isinstance(block, Lora) and block.init in ("default", "gaussian", "orthogonal"):
        qlora = Qlora.model_validate(block.model_dump())
        yield (
            {"spec.method": {"qlora": qlora.model_dump(mode="json", by_alias=True, exclude_defaults=True)}},
            "the base is rounded to 4 bits: slightly worse, and slower",
            Method(qlora=qlora),
            training,
        )


def _with(training: Training, **values: Any) -> Training:
    return training.model_copy(update=values)
