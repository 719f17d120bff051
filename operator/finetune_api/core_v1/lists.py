"""Define lists and maps with Kubernetes' rules: items with a unique key, and a maximum size.

The sizes bound the cost of the CEL rules that compare a spec with the one before.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from finetune_api.base import DnsLabel, Model

MAX_ITEMS = 64
MAX_TEXT = 1024

Text = Annotated[str, Field(max_length=MAX_TEXT)]
LongText = Annotated[str, Field(max_length=16 * MAX_TEXT)]
Name = DnsLabel
"""The name of an object of the API."""
LABEL = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
Label = Annotated[str, Field(max_length=63, pattern=LABEL)]
"""The value of a label."""
LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
"""Pattern of the key of a label: a name, after a domain or alone."""
Strings = Annotated[list[Text], Field(max_length=MAX_ITEMS)]
Labels = Annotated[dict[str, Label], Field(max_length=MAX_ITEMS)]
Annotations = Annotated[dict[str, LongText], Field(max_length=MAX_ITEMS)]


class KeyedBy:
    """Declare a list whose items differ in these fields: a list of type ``map`` for the API server."""

    def __init__(self, *keys: str, max_items: int = MAX_ITEMS) -> None:
        """Store the JSON names of the fields in which items must differ, and the maximum number of items."""
        self.keys = keys
        self.max_items = max_items

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Add the check to the list's own."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Declare the same for the API server."""
        return {
            **handler(schema),
            "maxItems": self.max_items,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": list(self.keys),
        }

    def _check(self, items: Sequence[Model]) -> Sequence[Model]:
        if len(items) > self.max_items:
            raise ValueError(f"must have at most {self.max_items} items: found {len(items)}")
        keys_seen = set()
        for number, item in enumerate(items):
            content = item.to_json()
            key = tuple(content.get(name) for name in self.keys)
            if key in keys_seen:
                described = ", ".join(f"{name} {value}" for name, value in zip(self.keys, key, strict=True))
                raise ValueError(
                    f"Duplicate value: item {number} has the {described} of another item: rename or remove it"
                )
            keys_seen.add(key)
        return items


def exactly_one(*names: str) -> dict[str, str]:
    """Return the CEL rule that a choice has exactly one of these fields."""
    count = " + ".join(f"(has(self.{name}) ? 1 : 0)" for name in names)
    return {"rule": f"{count} == 1", "message": f"exactly one of {', '.join(names[:-1])} and {names[-1]} must be set"}


def check_choice(model: Model, rule: dict[str, str]) -> None:
    """Raise ``ValueError`` with the rule's message unless exactly one field of the model is set.

    Only fields that are None when unset count.
    """
    choices = [name for name, field in type(model).model_fields.items() if field.default is None]
    if sum(getattr(model, name) is not None for name in choices) != 1:
        raise ValueError(rule["message"])
