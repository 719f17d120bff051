"""Apply ``--set PATH=VALUE`` to a FineTuneJob's file, and refuse paths that the API does not have."""

import copy
import difflib
import types
import typing
from typing import Any

from pydantic.fields import FieldInfo

from finetune_api.base import Model
from finetune_api.finetunejob import FineTuneJob
from finetune_cli.errors import CliError
from finetune_cli.yaml_reader import NotYamlError, read_yaml

ROOTS = ("metadata", "spec")


def apply_changes(document: dict[str, Any], changes: tuple[str, ...], code: int) -> dict[str, Any]:
    """Return a copy of the object with all changes, in their order.

    Args:
        document: The object.
        changes: The values of ``--set``: PATH=VALUE.
        code: Exit status of an error.

    Raises:
        CliError: A change has no value, no YAML, or an unknown path.
    """
    copied = copy.deepcopy(document)
    for change in changes:
        path, separator, text = change.partition("=")
        if not separator:
            raise CliError(f"--set {change}: found no =: write PATH=VALUE, for example spec.training.maxSteps=10", code)
        try:
            value = next((document.value for document in read_yaml(text.encode())), None)
        except NotYamlError as error:
            raise CliError(f"--set {change}: the value is not YAML: {error}", code) from error
        _put(copied, _split_path(path, code), value)
    return copied


def _put(document: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set the field, or remove it if the value is null, as in a JSON merge patch."""
    for key in keys[:-1]:
        if not isinstance(document.get(key), dict):
            document[key] = {}
        document = document[key]
    if value is None:
        document.pop(keys[-1], None)
    else:
        document[keys[-1]] = value


def _split_path(path: str, code: int) -> list[str]:
    """Split a path into its fields. Raises CliError, which names the first unknown field and similar ones."""
    model: type[Model] | None = FineTuneJob
    keys: list[str] = []
    rest = path
    while rest:
        if model is None:
            # a map, such as spec.resources.requests: its keys are the user's, and may have dots
            return [*keys, rest]
        key, _, rest = rest.partition(".")
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if not keys:
            fields = {name: fields[name] for name in ROOTS}
        if key not in fields:
            raise CliError(_describe_unknown(path, ".".join(keys), key, list(fields)), code)
        keys.append(key)
        model = _model_of(fields[key])
        if rest and model is None and not _is_map(fields[key]):
            raise CliError(f"--set {path}: {'.'.join(keys)} has no fields of its own: remove .{rest}", code)
    return keys


def _describe_unknown(path: str, parent: str, key: str, names: list[str]) -> str:
    section = parent or "a FineTuneJob"
    similar = difflib.get_close_matches(key, names, 3, 0.5)
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"it has {', '.join(names)}"
    return f"--set {path}: {section} has no field {key!r}: {hint}"


def _arguments(annotation: Any) -> list[Any]:
    """Return the types that a field accepts."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [part for argument in typing.get_args(annotation) for part in _arguments(argument)]
    return [annotation]


def _model_of(field: FieldInfo) -> type[Model] | None:
    models = (item for item in _arguments(field.annotation) if isinstance(item, type) and issubclass(item, Model))
    return next(models, None)


def _is_map(field: FieldInfo) -> bool:
    return any(typing.get_origin(item) is dict for item in _arguments(field.annotation))
