"""Which fields of a FineTuneJob can be edited once it exists. All others are immutable, new ones too.

An immutable field defines the result, or is part of the pod that runs: an edit would be accepted and not be in force.
"""

from finetune_api.base import Model

EDITABLE = frozenset(
    {
        "suspend",
        "activeDeadlineSeconds",
        "pendingDeadlineSeconds",
        "ttlSecondsAfterFinished",
        "failurePolicy",
        "output.deletionPolicy",
    }
)
"""Paths below ``spec`` that the operator follows on a live job, with all fields below them."""
IMMUTABLE = (
    "spec.{} is immutable, because it decides what is trained, or the pod that trains: create a new FineTuneJob with "
    "another name, or delete this one first"
)


def immutability_rules(model: type[Model], path: str = "") -> list[dict[str, str]]:
    """Return a CEL transition rule of ``spec`` for each field that cannot be edited.

    Args:
        model: The model of the spec, or of a section of it.
        path: Path of the section below spec, with a dot at its end.
    """
    rules = []
    for name, field in model.model_fields.items():
        own = f"{path}{field.alias or name}"
        if own in EDITABLE:
            continue
        section = field.annotation
        if any(other.startswith(f"{own}.") for other in EDITABLE) and isinstance(section, type):
            rules += immutability_rules(section, f"{own}.")
        else:
            new, old = f"self.{own}", f"oldSelf.{own}"
            # The API server cannot estimate what a comparison of optionals costs.
            rules.append(
                {
                    "rule": f"has({new}) == has({old}) && (!has({new}) || {new} == {old})",
                    "message": IMMUTABLE.format(own),
                    "fieldPath": f".{own}",
                }
            )
    return rules
