"""What to change in a job so that it needs less memory: one change after another, what costs least first."""

from dataclasses import dataclass
from typing import Any

from finetune_api.estimate.memory import memory
from finetune_api.estimate.modules import Architecture
from finetune_api.finetunejob import Training
from finetune_api.methods import Dora, Full, Lora, Method, PrefixTuning, Qlora, Quantization

SMALL_OPTIMIZER = "paged_adamw_8bit"
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


def changes(
    architecture: Architecture, method: Method, training: Training, *, evaluates: bool = False, processes: int = 1
) -> list[Change]:
    """The changes that lower the memory, each with all that precede it. Raises TargetError and NotCountedError."""
    found: list[Change] = []
    needed = memory(architecture, method, training, evaluates=evaluates, processes=processes).total
    for propose in (
        _smaller_batch,
        _checkpointing,
        _small_optimizer,
        _shorter,
        _adapter,
        _quantised,
    ):
        while proposal := propose(method, training):
            total = memory(
                architecture, proposal.method, proposal.training, evaluates=evaluates, processes=processes
            ).total
            if total > WORTH * needed:
                break
            found.append(Change(proposal.fields, proposal.effect, total))
            method, training, needed = proposal.method, proposal.training, total
    return found


@dataclass(frozen=True)
class _Proposal:
    fields: dict[str, Any]
    effect: str
    method: Method
    training: Training


def _smaller_batch(method: Method, training: Training) -> _Proposal | None:
    """The next divisor of the batch, and as much more accumulation."""
    batch = training.per_device_batch_size
    if batch == 1:
        return None
    smaller = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)
    accumulation = training.gradient_accumulation_steps * (batch // smaller)
    return _Proposal(
        {"spec.training.perDeviceBatchSize": smaller, "spec.training.gradientAccumulationSteps": accumulation},
        "the same effective batch, somewhat slower",
        method,
        _with(training, per_device_batch_size=smaller, gradient_accumulation_steps=accumulation),
    )


def _checkpointing(method: Method, training: Training) -> _Proposal | None:
    """Prefix tuning does not work with it (peft/peft_model.py, ``_setup_prompt_encoder``)."""
    if training.gradient_checkpointing == "always" or isinstance(method.config, PrefixTuning):
        return None
    return _Proposal(
        {"spec.training.gradientCheckpointing": "always"},
        "the same result, about a third slower",
        method,
        _with(training, gradient_checkpointing="always"),
    )


def _small_optimizer(method: Method, training: Training) -> _Proposal | None:
    if training.optimizer == SMALL_OPTIMIZER:
        return None
    return _Proposal(
        {"spec.training.optimizer": SMALL_OPTIMIZER},
        "nearly the same result: the optimizer's moments are rounded to 8 bits",
        method,
        _with(training, optimizer=SMALL_OPTIMIZER),
    )


def _shorter(method: Method, training: Training) -> _Proposal | None:
    if training.max_length < 2 * SHORTEST:
        return None
    length = training.max_length // 2
    return _Proposal(
        {"spec.training.maxLength": length},
        "longer rows are cut: look at the dataset's token lengths first",
        method,
        _with(training, max_length=length),
    )


def _adapter(method: Method, training: Training) -> _Proposal | None:
    if not isinstance(method.config, Full):
        return None
    effect = "an adapter instead of all weights: often as good, and far smaller"
    return _Proposal({"spec.method": {"lora": {}}}, effect, Method(lora=Lora()), training)


def _quantised(method: Method, training: Training) -> _Proposal | None:
    """LoRA and DoRA can be trained on a quantised base; PiSSA and OLoRA begin with the base's own weights, so they cannot. Nor can it be sharded."""
    if training.sharding != "none":
        return None
    block = method.config
    effect = "the base is rounded to 4 bits: slightly worse, and slower"
    if isinstance(block, Dora) and block.quantization is None:
        quantised = block.model_copy(update={"quantization": Quantization()})
        return _Proposal({"spec.method.dora.quantization": {}}, effect, Method(dora=quantised), training)
    if isinstance(block, Lora) and block.init in ("default", "gaussian", "orthogonal"):
        qlora = Qlora.model_validate(block.model_dump())
        fields = qlora.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return _Proposal({"spec.method": {"qlora": fields}}, effect, Method(qlora=qlora), training)
    return None


def _with(training: Training, **values: Any) -> Training:
    return training.model_copy(update=values)
