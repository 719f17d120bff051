"""List the fields of a FineTuneJob that can be edited after its creation. All others are immutable.

An immutable field decides the result, or is part of the running pod, which an edit would not reach.
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
        "resources.merge",
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
        field_path = f"{path}{field.alias or name}"
        if field_path in EDITABLE:
            continue
        section = field.annotation
        if any(editable.startswith(f"{field_path}.") for editable in EDITABLE) and isinstance(section, type):
            rules += immutability_rules(section, f"{field_path}.")
        else:
            new, old = f"self.{field_path}", f"oldSelf.{field_path}"
            # The API server cannot estimate what a comparison of optionals costs.
            rules.append(
                {
                    "rule": f"has({new}) == has({old}) && (!has({new}) || {new} == {old})",
                    "message": IMMUTABLE.format(field_path),
                    "fieldPath": f".{field_path}",
                }
            )
    return rules
