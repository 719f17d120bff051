"""Every setting that was in force, and where it came from: the user's file, ``--set``, a default, or the run itself."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.base import Model
from finetune_api.finetunejob import Adjustment


@dataclass(frozen=True)
class Setting:
    """One setting that was in force; ``origin`` says where it came from."""

    path: str
    value: str
    origin: str


ENVIRONMENT_PATH = "spec.podTemplate.env"
USER_FILE, COMMAND_LINE, DEFAULT, OUT_OF_MEMORY = "your file", "--set", "default", "out of memory"


def list_effective_settings(
    spec: Model, changes: Sequence[str], adjustments: Sequence[Adjustment] = ()
) -> list[Setting]:
    """The leaves of the spec with their origin. What equals its default is called a default, whoever wrote it.

    ``changes`` are the paths of fields that the command line replaced, ``adjustments`` what the ladder replaced (finetune_api.ladder).
    """
    found, fitted = [], {f"spec.{change.field}" for change in adjustments}
    for path, value, default in _leaves(spec, "spec"):
        origin = DEFAULT if default is not None and value == default[0] else USER_FILE
        if any(path == change or path.startswith(f"{change}.") for change in changes):
            origin = COMMAND_LINE
        # a method's settings have its name in their path: spec.method.qlora.quantization.type
        if {path, re.sub(r"^spec\.method\.\w+\.(quantization)\..*", r"spec.method.\1", path)} & fitted:
            origin = OUT_OF_MEMORY
        # an environment variable's value may be anything, a credential too
        shown = [variable["name"] for variable in value] if path == ENVIRONMENT_PATH else value
        found.append(Setting(path, redact_credentials(format_value(shown)), origin))
    return found


def redact_credentials(value: str) -> str:
    """A text in which no address names a user and a password: what is reported may be published."""
    return re.sub(r"://[^/@\s]+@", "://…@", value)


def _leaves(model: Model, path: str) -> Iterator[tuple[str, Any, tuple[Any] | None]]:
    """Path, value and default (None: there is none) of each field that has a value."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        place = f"{path}.{field.alias or name}"
        if isinstance(value, Model):
            yield from _leaves(value, place)
        elif value not in (None, {}, []):
            yield (
                place,
                _plain(value),
                None if field.is_required() else (_plain(field.get_default(call_default_factory=True)),),
            )


def _plain(value: Any) -> Any:
    if isinstance(value, Model):
        return value.to_json()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def format_value(value: Any) -> str:
    """A value as one would write it in YAML."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
