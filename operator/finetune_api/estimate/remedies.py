"""Which changes lower a job's need of memory, and by how much: the reductions, one after another."""

from dataclasses import dataclass
from typing import Any

from finetune_api.base import Model
from finetune_api.estimate.memory import memory
from finetune_api.estimate.modules import Architecture
from finetune_api.finetunejob import Training
from finetune_api.methods import Method
from finetune_api.reductions import REDUCTIONS, Settings

WORTHWHILE = 0.97
"""A change that leaves more than this part of the memory is not proposed."""


@dataclass(frozen=True)
class Change:
    """One change, in addition to those before it."""

    fields: dict[str, Any]
    """Fields of the job with their new values."""
    effect: str
    """What else it changes."""
    bytes: int
    """Memory that the job needs then."""


def propose_changes(
    architecture: Architecture, method: Method, training: Training, *, evaluates: bool = False, processes: int = 1
) -> list[Change]:
    """List the changes that lower the memory, each in addition to those before it.

    Raises:
        TargetError: The method names a module that the model does not have.
        NotCountedError: There is no closed form for the method on this model.
    """

    def bytes_of(settings: Settings) -> int:
        return memory(architecture, settings.method, settings.training, evaluates=evaluates, processes=processes).total

    changes: list[Change] = []
    settings = Settings(method, training)
    needed = bytes_of(settings)
    for reduction in REDUCTIONS:
        while reduced := reduction.apply(settings):
            total = bytes_of(reduced)
            if total > WORTHWHILE * needed:
                break
            changes.append(Change(_changed_fields(settings, reduced), reduction.effect, total))
            settings, needed = reduced, total
    return changes


def _changed_fields(before: Settings, after: Settings) -> dict[str, Any]:
    """Return the changed fields by their path in the job; another method as a whole."""
    fields = _differences(before.training, after.training, "spec.training")
    old, new = before.method, after.method
    if new.name == old.name:
        return fields | _differences(old.config, new.config, f"spec.method.{new.name}")
    block = new.config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return fields | {"spec.method": {new.name: block}}


def _differences(before: Model, after: Model, path: str) -> dict[str, Any]:
    """Return the fields of ``after`` that differ, a section with those of its values that are no defaults."""
    changed = {name for name in type(after).model_fields if getattr(before, name) != getattr(after, name)}
    values = after.model_dump(mode="json", by_alias=True, include=changed, exclude_none=True)
    sections = {
        str(type(after).model_fields[name].alias): section.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for name in changed
        if isinstance(section := getattr(after, name), Model)
    }
    return {f"{path}.{name}": value for name, value in (values | sections).items()}
