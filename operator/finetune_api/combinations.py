"""Sections of a FineTuneJob that do not go together: each rule once, as CEL for the API server and as a function for files that never meet one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PREFIX_TYPES = ("PREFIX_TUNING", "CARTRIDGE")
PROMPT_TYPES = (*PREFIX_TYPES, "PROMPT_TUNING", "P_TUNING", "CPT")
"""Of PEFT's methods those that put learned tokens, or their keys and values, before the text."""
PREFIX = f"(has(self.method.prefixTuning) || (has(self.method.peft) && self.method.peft.type in {list(PREFIX_TYPES)}))"
VIRTUAL = (
    "(has(self.method.promptTuning) || has(self.method.prefixTuning) || has(self.method.pTuning) || "
    f"(has(self.method.peft) && self.method.peft.type in {list(PROMPT_TYPES)}))"
)


@dataclass(frozen=True)
class Rule:
    """``broken`` says of a FineTuneJobSpec that it breaks the rule; ``cel`` is true where it does not."""

    cel: str
    field: str
    message: str
    broken: Callable[[Any], bool]


def _virtual(spec: Any) -> bool:
    method = spec.method
    named = any((method.prompt_tuning, method.prefix_tuning, method.p_tuning))
    return named or (method.peft is not None and method.peft.type in PROMPT_TYPES)


def _prefix(spec: Any) -> bool:
    method = spec.method
    return method.prefix_tuning is not None or (method.peft is not None and method.peft.type in PREFIX_TYPES)


RULES = [
    Rule(
        f"!(self.training.packing && {VIRTUAL})",
        ".training.packing",
        "packing does not go with promptTuning, prefixTuning and pTuning, which put their tokens before each sequence and not before each packed example: "
        "set packing to false",
        lambda spec: spec.training.packing and _virtual(spec),
    ),
    Rule(
        f"!(self.training.gradientCheckpointing && {PREFIX})",
        ".training.gradientCheckpointing",
        "gradientCheckpointing does not go with prefixTuning, whose keys and values would be lost in the second pass: set gradientCheckpointing to false",
        lambda spec: spec.training.gradient_checkpointing and _prefix(spec),
    ),
    Rule(
        f"!(self.output.mergedModel && ({VIRTUAL} || has(self.method.bottleneck)))",
        ".output.mergedModel",
        "mergedModel does not go with promptTuning, prefixTuning, pTuning and bottleneck, which are no update of the base's weights: set mergedModel to false",
        lambda spec: spec.output.merged_model and (_virtual(spec) or spec.method.bottleneck is not None),
    ),
    Rule(
        "!(self.output.mergedModel && has(self.method.full))",
        ".output.mergedModel",
        "mergedModel does not go with full, which gives a whole model already: set mergedModel to false",
        lambda spec: spec.output.merged_model and spec.method.full is not None,
    ),
    Rule(
        "!(has(self.model.adapter) && (has(self.method.full) || has(self.method.adalora) || has(self.method.pTuning) || "
        "(has(self.method.prefixTuning) && self.method.prefixTuning.prefixProjection)))",
        ".model.adapter",
        "model.adapter does not go with full, adalora, pTuning and prefixProjection, whose adapters do not hold all that was trained: remove it, or choose lora",
        lambda spec: (
            spec.model.adapter is not None
            and bool(
                spec.method.full
                or spec.method.adalora
                or spec.method.p_tuning
                or (spec.method.prefix_tuning and spec.method.prefix_tuning.prefix_projection)
            )
        ),
    ),
    Rule(
        "!(has(self.model.adapter) && ((has(self.method.lora) && self.method.lora.init in ['pissa', 'olora']) || "
        "(has(self.method.qlora) && self.method.qlora.init == 'loftq')))",
        ".model.adapter",
        "model.adapter does not go with init pissa, olora and loftq, which are other beginnings: set init to default",
        lambda spec: (
            spec.model.adapter is not None and getattr(spec.method.config, "init", "") in ("pissa", "olora", "loftq")
        ),
    ),
]
CEL_RULES = [{"rule": rule.cel, "message": rule.message, "fieldPath": rule.field} for rule in RULES]


def check(spec: Any) -> None:
    """Raise ValueError with all messages of the rules that a FineTuneJobSpec breaks."""
    if found := [rule.message for rule in RULES if rule.broken(spec)]:
        raise ValueError("; ".join(found))
