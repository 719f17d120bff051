"""Define, parse and format quantities of CPU and memory."""

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][0-9]{1,2})?$"
UNITS = {
    **{unit: Decimal(1000) ** power for power, unit in enumerate(["", "k", "M", "G", "T", "P", "E"])},
    **{unit: Decimal(1024) ** power for power, unit in enumerate(["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"], start=1)},
    "m": Decimal("0.001"),
}
EXAMPLES = (
    "write a whole number, or a number with one of the units m, k, M, G, T, Ki, Mi, Gi, Ti, for example 500m or 16Gi"
)


class _Checked:
    """Declare an integer or a string as a quantity, with a message that shows how to write one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(_check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": PATTERN}


def _check(value: int | str) -> int | str:
    if not re.fullmatch(PATTERN, str(value)):
        raise ValueError(f"is not a quantity: {EXAMPLES}")
    return value


Quantity = Annotated[int | str, _Checked()]
Quantities = Annotated[dict[str, Quantity], Field(max_length=16)]
"""Quantities by the name of their resource."""


def parse_quantity(value: int | str) -> Decimal:
    """Return the number that a quantity stands for."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)([0-9]*)", str(value))
    assert match is not None, "checked by the model"  # noqa: S101
    number, unit, exponent = match.groups()
    if exponent:
        return Decimal(f"{number}e{exponent}")
    return Decimal(number) * UNITS[unit]


def format_quantity(number: Decimal) -> str:
    """Write a number as a quantity: in the largest binary unit, or else whole or in thousandths."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if number and number % UNITS[unit] == 0:
            return f"{int(number / UNITS[unit])}{unit}"
    integral = number.to_integral_value()
    return str(int(integral)) if number == integral else f"{int(number * 1000)}m"
