"""Build the status of one object from the models that the CRD is generated from.

No other field can be written.

Reading is lenient: values that a newer version wrote and this one does not understand are left out. They stay in the
object, also in a section that is replaced.
"""

from datetime import datetime
from typing import Generic, TypeVar

from pydantic import ValidationError

from finetune_api.base import Model
from finetune_api.lenient import read_known
from finetune_operator.conditions import Conditions
from finetune_operator.event_record import EventRecord
from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.foreign_fields import keep_foreign

StatusT = TypeVar("StatusT", bound=Model)


class StatusBuilder(Generic[StatusT]):
    """The status that a pass is building, and its events: the only mutable value of a plan.

    It begins as a copy of the object's status. ``set`` replaces fields; all others stay byte for byte as they are.
    """

    def __init__(self, model: type[StatusT], resource: Object, now: datetime) -> None:
        """Copy the status of the resource."""
        status = resource.get("status") or {}
        self._model = model
        self._generation: int = resource["metadata"].get("generation", 0)
        self.conditions = Conditions(status.get("conditions") or [], self._generation, now)
        self.events: list[EventRecord] = []
        self._fields: Object = {name: value for name, value in status.items() if name != "conditions"}
        self._read: StatusT | None = None

    def set(self, fields: StatusT) -> None:
        """Replace the fields that are set in this model."""
        content = fields.to_json()
        aliases = [type(fields).model_fields[name].alias or name for name in fields.model_fields_set]
        after = keep_foreign(
            self._model, self._fields, {alias: content[alias] for alias in aliases if alias in content}
        )
        self._fields |= after
        self._read = None

    def remove(self, field: str) -> None:
        """Remove a field, by its JSON name, if it is there."""
        self._fields.pop(field, None)

    def read(self) -> StatusT:
        """Return the fields as they are now, without the conditions."""
        if self._read is None:
            self._read = read_status(self._model, self._fields)
        return self._read

    def has(self, field: str) -> bool:
        """Return whether the status has a field, by its JSON name. Its value may be one of a newer version."""
        return field in self._fields

    def as_json(self) -> Object:
        """Return the status as JSON, for the generation that the pass read."""
        return {**self._fields, "observedGeneration": self._generation, "conditions": self.conditions.as_json()}


def read_status(model: type[StatusT], status: Object) -> StatusT:
    """Read the part of a status that this version understands; values that it cannot read are left out."""
    try:
        return read_known(model, status)[0]
    except ValidationError:
        return model()
