"""List every setting of a run with its origin: the user's file, ``--set``, a default, or the run."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.base import Model
from finetune_api.finetunejob import Adjustment, TrainingChoice


@dataclass(frozen=True)
class Setting:
    """One setting of a run; ``origin`` says where its value came from."""

    path: str
    value: str
    origin: str


ENVIRONMENT_PATH = "spec.podTemplate.env"
USER_FILE, COMMAND_LINE, DEFAULT, OUT_OF_MEMORY = "your file", "--set", "default", "out of memory"
CHOSEN = "chosen for the GPU"


def list_effective_settings(
    spec: Model, changes: Sequence[str], adjustments: Sequence[Adjustment] = (), choice: TrainingChoice | None = None
) -> list[Setting]:
    """List the fields of the spec that have a value, each with its origin.

    A value that equals the default has the origin default, also if the user wrote it.

    Args:
        spec: The spec, or another model of settings.
        changes: Paths of the fields that the command line replaced.
        adjustments: Changes after an earlier attempt ran out of memory (``finetune_api.ladder``).
        choice: The values that were chosen for unset fields.
    """
    chosen = {f"spec.{field}" for field in choice.list_fields()} if choice else set[str]()
    settings, adjusted = [], {f"spec.{change.field}" for change in adjustments}
    for path, value, default in _leaves(spec, "spec"):
        origin = DEFAULT if default is not None and value == default[0] else USER_FILE
        if any(path == change or path.startswith(f"{change}.") for change in changes):
            origin = COMMAND_LINE
        if path in chosen:
            origin = CHOSEN
        # The path of a method's field contains the method's name: spec.method.qlora.quantization.type.
        if {path, re.sub(r"^spec\.method\.\w+\.(quantization)\..*", r"spec.method.\1", path)} & adjusted:
            origin = OUT_OF_MEMORY
        # The value of an environment variable may be a credential: show the names only.
        displayed = [variable["name"] for variable in value] if path == ENVIRONMENT_PATH else value
        settings.append(Setting(path, redact_credentials(format_value(displayed)), origin))
    return settings


def redact_credentials(value: str) -> str:
    """Remove user names and passwords from the URLs in a text, because reports may be published."""
    return re.sub(r"://[^/@\s]+@", "://…@", value)


def _leaves(model: Model, path: str) -> Iterator[tuple[str, Any, tuple[Any] | None]]:
    """Yield path, value and default (None if there is none) of each field that has a value."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        field_path = f"{path}.{field.alias or name}"
        if isinstance(value, Model):
            yield from _leaves(value, field_path)
        elif value not in (None, {}, []):
            yield (
                field_path,
                _to_plain(value),
                None if field.is_required() else (_to_plain(field.get_default(call_default_factory=True)),),
            )


def _to_plain(value: Any) -> Any:
    if isinstance(value, Model):
        return value.to_json()
    return [_to_plain(item) for item in value] if isinstance(value, list) else value


def format_value(value: Any) -> str:
    """Format a value as one would write it in YAML."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
