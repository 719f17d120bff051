"""Define which sections of a FineTuneJob exclude each other: each rule once, as CEL and as a function.

Which methods a rule speaks of follows from the facts that the methods' blocks state (``finetune_api.methods``).
"""

from typing import TYPE_CHECKING

from finetune_api.combinations import evaluation, method, objective

if TYPE_CHECKING:
    from finetune_api.finetunejob.spec import FineTuneJobSpec

RULES = [*method.RULES, *objective.RULES, *evaluation.RULES]
CEL_RULES = [{"rule": rule.cel, "message": rule.message, "fieldPath": rule.field} for rule in RULES]


def allows(spec: "FineTuneJobSpec") -> bool:
    """Return whether a spec breaks none of the rules."""
    return not any(rule.breaks(spec) for rule in RULES)


def check(spec: "FineTuneJobSpec") -> None:
    """Check a spec against all rules.

    Raises:
        ValueError: The messages of the rules that it breaks.
    """
    if broken := [rule.message for rule in RULES if rule.breaks(spec)]:
        raise ValueError("; ".join(broken))
