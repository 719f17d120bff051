"""Decide from their names which modules of a model a method adapts, as PEFT decides it."""

import re
from collections.abc import Iterable, Sequence

from finetune_api import peft_tables, roles
from finetune_api.methods import ALL_LINEAR, AUTO, Ia3, LoraFields, Targeted, matches_pattern
from finetune_api.roles import suffixes


class TargetError(ValueError):
    """A field of the method names a module that the model does not have.

    Attributes:
        field: Name of the field below the method.
    """

    def __init__(self, field: str, message: str) -> None:
        """Keep the field's name with the message."""
        super().__init__(message)
        self.field = field


def select_modules(
    linear: Sequence[str], block: Targeted, method: str, model_type: str, *, has_experts: bool = False
) -> list[str]:
    """Select the modules that get an adapter.

    Args:
        linear: Full names of all linear layers except the output head.
        block: The method's block.
        method: The method's name in ``spec.method``.
        model_type: ``model_type`` of the model's config.json.
        has_experts: Whether the model is a mixture of experts.

    Raises:
        TargetError: A field names no module of the model, or no module is left.
    """
    targets = resolve_targets(linear, block, method, model_type, has_experts=has_experts)
    if targets == ALL_LINEAR:
        chosen = list(linear)
    elif isinstance(targets, str):
        chosen = [name for name in linear if _matches_fully(targets, name)]
        if not chosen:
            raise TargetError(
                "targetModules",
                f"the regular expression {targets!r} matches the full name of no linear module. Full names look like "
                f"{linear[0]}; their last parts are: {_list_suffixes(linear)}. Correct it, or write all-linear",
            )
    else:
        if missing := [target for target in targets if not _with_suffix(linear, target)]:
            raise TargetError(
                "targetModules",
                f"the model has no linear module named {', '.join(missing)}; it has: {_list_suffixes(linear)}. "
                "Choose among these, or write all-linear",
            )
        named_by_suffix = {name for target in targets for name in _with_suffix(linear, target)}
        chosen = [name for name in linear if name in named_by_suffix]
    chosen = [name for name in chosen if not is_saved(name, block.modules_to_save)]
    if not chosen:
        raise TargetError(
            "modulesToSave",
            "every module of targetModules is in modulesToSave, so that none is adapted: remove some of them "
            "from modulesToSave",
        )
    _check_patterns(chosen, block)
    return chosen


def resolve_targets(
    linear: Sequence[str], block: Targeted, method: str, model_type: str, *, has_experts: bool = False
) -> str | list[str]:
    """Return ``targetModules``, with ``auto`` and an empty list replaced by what they stand for.

    An empty list stands for PEFT's defaults for the architecture, else for modules by their role.

    Raises:
        TargetError: PEFT has no defaults for the architecture, and its names do not tell the roles of its layers.
    """
    if block.target_modules == AUTO:
        return (roles.list_attention(linear) if has_experts else []) or ALL_LINEAR
    if block.target_modules:
        return block.target_modules
    defaults = peft_tables.default_targets(block.peft_type, model_type)
    if isinstance(defaults, str) or (defaults and all(_with_suffix(linear, name) for name in defaults)):
        return defaults
    if not isinstance(block, Ia3):
        return roles.list_queries_and_values(linear) or ALL_LINEAR
    attention, outputs = roles.list_keys_and_values(linear), roles.list_feedforward_outputs(linear)
    if not attention:
        raise TargetError(
            "targetModules",
            f"PEFT {peft_tables.version()} has no default modules of {method} for a model of type {model_type!r}, and "
            "the names of its layers do not tell which ones compute keys and values: write all-linear, or a list of "
            f"module names; it has: {_list_suffixes(linear)}",
        )
    return attention + outputs


def select_feedforward(chosen: Iterable[str], block: Ia3, model_type: str) -> list[str]:
    """Select the adapted modules whose input IA³ scales instead of their output.

    Raises:
        TargetError: ``feedforwardModules`` names no adapted module.
    """
    modules = list(chosen)
    names = resolve_feedforward(modules, block, model_type)
    if block.feedforward_modules and (missing := [name for name in names if not _with_suffix(modules, name)]):
        raise TargetError(
            "feedforwardModules",
            f"{', '.join(missing)} is none of the adapted modules, which are: {_list_suffixes(modules)}. Add it to "
            "targetModules, or remove it",
        )
    return [module for module in modules if any(_with_suffix([module], name) for name in names)]


def resolve_feedforward(chosen: Iterable[str], block: Ia3, model_type: str) -> list[str]:
    """Return ``feedforwardModules``; if unset, the architecture's defaults in PEFT, else those by role."""
    if block.feedforward_modules is not None:
        return block.feedforward_modules
    modules, defaults = list(chosen), peft_tables.default_feedforward(model_type)
    if defaults is not None and any(_with_suffix(modules, name) for name in defaults):
        return defaults
    return roles.list_feedforward_outputs(modules)


def find_converted_experts(block: Targeted, model_type: str, tensors: Iterable[str]) -> list[str]:
    """Return the names by which ``targetModules`` reaches experts or routers that PEFT adapts as parameters.

    Args:
        block: The method's block.
        model_type: ``model_type`` of the model's config.json.
        tensors: Names of the model's weights.
    """
    names, target = peft_tables.converted_experts(model_type), block.target_modules
    if block.peft_type != "LORA" or target == AUTO:
        return []
    if target == ALL_LINEAR:
        return [ALL_LINEAR] if names else []
    if isinstance(target, list):
        return [name for name in target if name.rsplit(".", 1)[-1] in names]
    of_experts = (name.removesuffix(".weight") for name in tensors if roles.has_experts([name]))
    return [target] if names and any(_matches_fully(target, module) for module in of_experts) else []


def check_saved(modules: Iterable[str], saved: list[str]) -> None:
    """Check that every name of ``modulesToSave`` is that of a module.

    Raises:
        TargetError: A name is that of no module.
    """
    names = list(modules)
    if missing := [name for name in saved if not _with_suffix(names, name)]:
        raise TargetError(
            "modulesToSave",
            f"the model has no module named {', '.join(missing)} with weights of its own; it has: "
            f"{', '.join(part for part in suffixes(names) if not part.isdigit())}",
        )


def check_expression(modules: Iterable[str], linear: Iterable[str], target: str | list[str]) -> None:
    """Check that a regular expression of ``targetModules`` matches linear modules only: PEFT refuses others.

    Raises:
        TargetError: It matches another module as well.
    """
    if isinstance(target, list) or target in (AUTO, ALL_LINEAR):
        return
    names = set(linear)
    for name in modules:
        if name not in names and _matches_fully(target, name):
            raise TargetError(
                "targetModules",
                f"the regular expression {target!r} also matches {name}, which is no linear module: let it end with "
                f"the names of linear modules, for example {r'.*'}({'|'.join(suffixes(names)[:2])})",
            )


def is_saved(module: str, modules_to_save: Iterable[str]) -> bool:
    """Return whether ``modulesToSave`` names the module, or one that contains it."""
    return any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module) for name in modules_to_save)


def _check_patterns(chosen: list[str], block: Targeted) -> None:
    if not isinstance(block, LoraFields):
        return
    for field, pattern in (("rankPattern", block.rank_pattern), ("alphaPattern", block.alpha_pattern)):
        for key in pattern:
            try:
                matched = any(matches_pattern(key, module) for module in chosen)
            except re.error as error:
                raise TargetError(field, f"{key!r} is no regular expression ({error}): correct it") from error
            if not matched:
                raise TargetError(
                    field, f"{key!r} matches none of the adapted modules, which are: {_list_suffixes(chosen)}"
                )


def _matches_fully(expression: str, name: str) -> bool:
    """Match a full name; files as old as GPT-2's leave out its first part, which the loaded model has."""
    return any(re.fullmatch(expression, full) for full in (name, f"transformer.{name}", f"model.{name}"))


def _with_suffix(modules: Iterable[str], target: str) -> list[str]:
    return [
        module
        for module in modules
        if module == target or module.endswith(f".{target}") or target in (f"transformer.{module}", f"model.{module}")
    ]


def _list_suffixes(modules: Iterable[str]) -> str:
    return ", ".join(suffixes(modules))
