"""Reduce the memory of a job that ran out of it, by one reduction at a time.

No reduction changes how many sequences an optimizer step has.
"""

from collections.abc import Sequence
from typing import Any

from pydantic.alias_generators import to_camel

from finetune_api import combinations
from finetune_api.finetunejob import Adjustment, FineTuneJobSpec
from finetune_api.reasons import Reason
from finetune_api.reductions import REDUCTIONS, Reduction, Settings, smallest_batch

REDUCIBLE_TRAINING: dict[str, type] = {
    "per_device_batch_size": int,
    "gradient_accumulation_steps": int,
    "gradient_checkpointing": str,
}
QUANTIZATION = "method.quantization"


def needs_less_memory(spec: FineTuneJobSpec, reason: str) -> bool:
    """Return whether an attempt that ended for this reason needs less memory of its device.

    Without a GPU the container's memory is the device's.
    """
    return reason == Reason.OUT_OF_MEMORY or (reason == Reason.HOST_OUT_OF_MEMORY and spec.resources.gpus_per_node == 0)


def reduce_memory(spec: FineTuneJobSpec, times: int) -> FineTuneJobSpec | None:
    """Return the spec after a number of reductions; None if there are fewer."""
    for _ in range(times):
        reduced = reduce_once(spec)
        if reduced is None:
            return None
        spec = reduced
    return spec


def reduce_once(spec: FineTuneJobSpec) -> FineTuneJobSpec | None:
    """Return the spec after the first reduction that has a step left and breaks no rule; None if there is none."""
    settings = Settings(spec.method, spec.training, smallest_batch=smallest_batch(spec))
    for reduction in REDUCTIONS:
        if _is_allowed(reduction, spec) and (reduced := reduction.apply(settings)):
            changed = spec.model_copy(update={"method": reduced.method, "training": reduced.training})
            if combinations.allows(changed):
                return changed
    return None


def add_adjustments(earlier: Sequence[Adjustment], later: Sequence[Adjustment]) -> list[Adjustment]:
    """Add later adjustments to earlier ones: of a field that both changed, the first value and the last."""
    before = {change.field: change.before for change in reversed([*earlier, *later])}
    after = {change.field: change.after for change in [*earlier, *later]}
    return [Adjustment(field=field, before=before[field], after=after[field]) for field in after]


def apply_adjustments(spec: FineTuneJobSpec, adjustments: Sequence[Adjustment]) -> FineTuneJobSpec:
    """Return the spec as an attempt with these adjustments trained it, whatever failurePolicy allows now."""
    after = {change.field: change.after for change in adjustments}
    training: dict[str, Any] = {
        name: kind(after[f"training.{to_camel(name)}"])
        for name, kind in REDUCIBLE_TRAINING.items()
        if f"training.{to_camel(name)}" in after
    }
    method = spec.method.quantize() if QUANTIZATION in after else None
    return spec.model_copy(
        update={"training": spec.training.model_copy(update=training), "method": method or spec.method}
    )


def list_adjustments(spec: FineTuneJobSpec, reduced: FineTuneJobSpec) -> list[Adjustment]:
    """List the fields that reductions have changed in a spec."""
    return [
        Adjustment(field=field, before=before, after=after)
        for (field, before), (_, after) in zip(
            _list_reducible_fields(spec), _list_reducible_fields(reduced), strict=True
        )
        if before != after
    ]


def explain_end(spec: FineTuneJobSpec, times: int) -> str:
    """Explain why no reduction is left, and what the user can do."""
    last = spec
    for _ in range(times):
        last = reduce_once(last) or last
    state = ", ".join(f"{field} is {value}" for field, value in _list_reducible_fields(last))
    forbidden = [reduction.policy for reduction in REDUCTIONS if reduction.policy and not _is_allowed(reduction, spec)]
    remedy = f"allow {', '.join(forbidden)} in failurePolicy.outOfMemory, " if forbidden else ""
    return (
        f"the operator cannot lower the need for memory any further ({state}): {remedy}lower training.maxLength, or "
        "use a device with more memory"
    )


def _is_allowed(reduction: Reduction, spec: FineTuneJobSpec) -> bool:
    policies = spec.failure_policy.out_of_memory.to_json()
    return bool(policies.get(reduction.policy))


def _list_reducible_fields(spec: FineTuneJobSpec) -> list[tuple[str, str]]:
    """List the fields that reductions change, with their values as they are written in YAML."""
    training, quantization = spec.training, spec.method.quantization
    return [
        ("training.perDeviceBatchSize", str(training.batch_size)),
        ("training.gradientAccumulationSteps", str(training.accumulation_steps)),
        ("training.gradientCheckpointing", training.gradient_checkpointing),
        (QUANTIZATION, quantization.type if quantization else "none"),
    ]
