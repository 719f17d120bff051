"""Keep fields that a newer version wrote when a part of a status is replaced. Pure."""

from typing import Any

from finetune_api.base import Model
from finetune_api.crd import models_in
from finetune_api.lenient import read_known
from finetune_operator.kube.kinds import Object


def keep_foreign(model: type[Model], before: Object, after: Object) -> Object:
    """Return ``after`` with the parts of ``before`` that this version does not understand, at every depth.

    Items of a list are the same if their first field is.
    """
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    merged = dict(after)
    for name, value in after.items():
        nested_model = next(iter(models_in(fields[name].annotation)), None)
        old = before.get(name)
        if nested_model is None:
            continue
        if isinstance(value, dict) and isinstance(old, dict):
            merged[name] = _keep_in_object(nested_model, old, value)
        elif isinstance(value, list) and isinstance(old, list):
            merged[name] = _keep_in_list(nested_model, old, value)
    return merged


def _keep_in_object(model: type[Model], before: Object, after: Object) -> Object:
    declared = {field.alias or name for name, field in model.model_fields.items()}
    unreadable = {path for path in _list_unreadable(model, before) if path in declared}
    foreign = {
        name: value
        for name, value in before.items()
        if name not in after and (name not in declared or name in unreadable)
    }
    return {**keep_foreign(model, before, after), **foreign}


def _keep_in_list(model: type[Model], before: list[Any], after: list[Any]) -> list[Any]:
    name, field = next(iter(model.model_fields.items()))
    identity = field.alias or name
    items = {str(item.get(identity)): item for item in before if isinstance(item, dict)}
    return [
        _keep_in_object(model, items[str(item[identity])], item) if str(item[identity]) in items else item
        for item in after
    ]


def _list_unreadable(model: type[Model], content: Object) -> list[str]:
    try:
        return read_known(model, content)[1]
    except ValueError:
        return []
