"""Decide from their names which modules of a model a method adapts, as PEFT decides it."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar

from finetune_api import peft_tables, roles
from finetune_api.linear import is_embedding_or_head
from finetune_api.methods import ALL_LINEAR, AUTO, Dora, Ia3, LoraFields, Targeted, matches_pattern
from finetune_api.reasons import Reason
from finetune_api.roles import ends_with, last_part, suffixes

MAMBA_MODEL_TYPES = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
MAMBA_KERNEL_MODULES = frozenset({"conv1d", "out_proj"})
"""Modules of these types that PEFT refuses to adapt: Mamba's kernels read their weights without calling them.

Source: peft/tuners/tuners_utils.py, ``_check_lora_target_modules_mamba``.
"""
PUBLISHED_AS_LORA = frozenset({"LORA", "ADALORA", "VERA", "MISS", "LOHA", "LOKR"})
"""PEFT types whose adapter is published as a plain LoRA, so that PEFT's limits of LoRA are theirs."""


class TargetError(ValueError):
    """A field of the method names a module that the model does not have.

    Attributes:
        field: Name of the field below the method.
        reason: The reason of the problem in the job's status.
    """

    reason: ClassVar[Reason] = Reason.TARGET_MODULES_NOT_FOUND

    def __init__(self, field: str, message: str) -> None:
        """Keep the field's name with the message."""
        super().__init__(message)
        self.field = field


class MethodMisfitError(TargetError):
    """PEFT cannot apply the method to a module that the model has."""

    reason: ClassVar[Reason] = Reason.MODEL_UNSUPPORTED


class MethodOptionError(TargetError):
    """PEFT refuses the value of an option, whatever the model."""

    reason: ClassVar[Reason] = Reason.SPEC_INVALID


def select_modules(
    linear: Sequence[str],
    block: Targeted,
    method: str,
    model_type: str,
    *,
    has_experts: bool = False,
    experts: Collection[str] = (),
) -> list[str]:
    """Select the modules that get an adapter.

    Args:
        linear: Full names of all linear layers except the output head.
        block: The method's block.
        method: The method's name in ``spec.method``.
        model_type: ``model_type`` of the model's config.json.
        has_experts: Whether the model is a mixture of experts.
        experts: Last parts of names of ``targetModules`` that PEFT takes for those of experts or routers. Linear
            modules with these names are not adapted.

    Raises:
        TargetError: A field names no module of the model, or no module is left.
    """
    targets = resolve_targets(linear, block, method, model_type, has_experts=has_experts)
    linear = [name for name in linear if last_part(name) not in experts]
    if targets == ALL_LINEAR:
        chosen = list(linear)
    elif isinstance(targets, str):
        chosen = _match_expression(linear, targets, block, model_type, experts)
    else:
        targets = [target for target in targets if last_part(target) not in experts]
        if missing := [target for target in targets if not _with_suffix(linear, target)]:
            raise TargetError("targetModules", _describe_missing(missing, linear))
        named_by_suffix = {name for target in targets for name in _with_suffix(linear, target)}
        chosen = [name for name in linear if name in named_by_suffix]
    _check_kernel_modules(chosen, block, method, model_type)
    adapted = [name for name in chosen if not is_saved(name, block.modules_to_save)]
    if not adapted and (chosen or not experts):
        raise TargetError(
            "modulesToSave",
            "every module of targetModules is in modulesToSave, so that none is adapted: remove some of them "
            "from modulesToSave",
        )
    _check_patterns(adapted, block)
    return adapted


def _match_expression(
    linear: Sequence[str], expression: str, block: Targeted, model_type: str, experts: Collection[str]
) -> list[str]:
    """Return the linear modules that a regular expression selects.

    Raises:
        TargetError: It matches none, or PEFT would adapt more modules than it matches.
    """
    chosen = [name for name in linear if _matches_fully(expression, name)]
    if not chosen and not experts:
        raise TargetError(
            "targetModules",
            f"the regular expression {expression!r} matches the full name of no linear module. Full names look like "
            f"{linear[0]}; their last parts are: {_list_suffixes(linear)}. Correct it, or write all-linear",
        )
    if block.peft_type == "LORA" and peft_tables.converted_experts(model_type):
        # PEFT reduces the expression to the last parts of the names (_resolve_string_target_modules).
        names = set(suffixes(chosen))
        if others := [name for name in linear if last_part(name) in names and name not in chosen]:
            raise TargetError(
                "targetModules",
                f"in a model of type {model_type!r} PEFT reduces the regular expression {expression!r} to the last "
                f"parts of the names that it matches, and would also adapt {others[0]}: write a list of full names, "
                f"for example [{chosen[0]}]",
            )
    return chosen


def _describe_missing(missing: list[str], linear: Sequence[str]) -> str:
    if whole := [name for name in missing if is_embedding_or_head(name)]:
        return (
            f"{', '.join(whole)} is the output head or an embedding, which gets no adapter: remove it from "
            f"targetModules, and to train it whole write modulesToSave: [{', '.join(whole)}]"
        )
    return (
        f"the model has no linear module named {', '.join(missing)}; it has: {_list_suffixes(linear)}. "
        "Choose among these, or write all-linear"
    )


def _check_kernel_modules(chosen: Iterable[str], block: Targeted, method: str, model_type: str) -> None:
    """Check that no module is chosen that Mamba's kernels read. Raises TargetError."""
    if refused := [name for name in chosen if _is_kernel_module(name, block, model_type)]:
        names = ", ".join(suffixes(refused))
        raise TargetError(
            "targetModules",
            f"PEFT's {method} does not adapt {names} in a model of type {model_type!r}, because Mamba's kernels read "
            f"the weight directly: remove {names}, or write auto, which leaves it out",
        )


def _is_kernel_module(name: str, block: Targeted, model_type: str) -> bool:
    return (
        block.peft_type in PUBLISHED_AS_LORA
        and model_type in MAMBA_MODEL_TYPES
        and last_part(name) in MAMBA_KERNEL_MODULES
    )


def _without_kernel_modules(linear: Sequence[str], block: Targeted, model_type: str) -> str | list[str]:
    """Return ``all-linear``, or the names of all linear modules that PEFT can adapt where it cannot adapt all."""
    adaptable = [name for name in linear if not _is_kernel_module(name, block, model_type)]
    return ALL_LINEAR if len(adaptable) == len(linear) else suffixes(adaptable)


def resolve_targets(
    linear: Sequence[str], block: Targeted, method: str, model_type: str, *, has_experts: bool = False
) -> str | list[str]:
    """Return ``targetModules``, with ``auto`` and an empty list replaced by what they stand for.

    An empty list stands for PEFT's defaults for the architecture, else for modules by their role.

    Raises:
        TargetError: PEFT has no defaults for the architecture, and its names do not tell the roles of its layers.
    """
    if block.target_modules == AUTO:
        attention = _list_attention(linear, block, model_type) if has_experts else []
        return attention or _without_kernel_modules(linear, block, model_type)
    if block.target_modules == ALL_LINEAR:
        return _without_kernel_modules(linear, block, model_type)
    if block.target_modules:
        return block.target_modules
    defaults = peft_tables.default_targets(block.peft_type, model_type)
    if isinstance(defaults, str) or (defaults and all(_with_suffix(linear, name) for name in defaults)):
        return defaults
    if not isinstance(block, Ia3):
        return roles.list_queries_and_values(linear) or _without_kernel_modules(linear, block, model_type)
    attention, outputs = roles.list_keys_and_values(linear), roles.list_feedforward_outputs(linear)
    if not attention:
        raise TargetError(
            "targetModules",
            f"PEFT {peft_tables.version()} has no default modules of {method} for a model of type {model_type!r}, and "
            "the names of its layers do not tell which ones compute keys and values: write all-linear, or a list of "
            f"module names; it has: {_list_suffixes(linear)}",
        )
    return attention + outputs


def _list_attention(linear: Sequence[str], block: Targeted, model_type: str) -> list[str]:
    """List the layers of attention, without those whose names PEFT takes for the experts' (afmoe's gate_proj)."""
    experts = peft_tables.converted_experts(model_type) if block.peft_type == "LORA" else {}
    return [name for name in roles.list_attention(linear) if last_part(name) not in experts]


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
        return [name for name in target if last_part(name) in names]
    of_experts = (name.removesuffix(".weight") for name in tensors if roles.has_experts([name]))
    return [target] if names and any(_matches_fully(target, module) for module in of_experts) else []


def find_experts(block: Targeted, model_type: str, tensors: Iterable[str]) -> frozenset[str]:
    """Return the last parts of the names by which ``targetModules`` reaches experts or routers; none if it does not.

    Args:
        block: The method's block.
        model_type: ``model_type`` of the model's configuration.
        tensors: Names of the loaded model's weights, in which one parameter holds all experts of a layer.

    Raises:
        TargetError: PEFT cannot adapt these experts with these options.
    """
    names, target = peft_tables.converted_experts(model_type), block.target_modules
    if block.peft_type != "LORA" or target == AUTO or not names:
        return frozenset()
    if target == ALL_LINEAR:
        experts = frozenset(names)
    elif isinstance(target, list):
        experts = frozenset(last_part(name) for name in target) & names.keys()
    else:
        probed = (name for tensor in tensors for name in _list_probed(tensor, names))
        experts = frozenset(last_part(name) for name in probed if re.fullmatch(target, name)) & names.keys()
    if experts:
        check_experts(experts, block, model_type)
    return experts


def _list_probed(tensor: str, names: dict[str, str]) -> list[str]:
    """List the names that PEFT compares with a regular expression for a tensor (_resolve_string_target_modules)."""
    container, _, last = tensor.rpartition(".")
    return [container] if last == "weight" else [f"{container}.{name}" for name, new in names.items() if new == last]


def check_experts(experts: Collection[str], block: Targeted, model_type: str) -> None:
    """Check that PEFT can adapt experts and routers with the options of the block.

    Args:
        experts: Last parts of the names of the layers of experts or routers, such as w1.
        block: The method's block.
        model_type: ``model_type`` of the model's config.json.

    Raises:
        TargetError: PEFT refuses the names.
        MethodMisfitError: PEFT refuses an option (peft/tuners/lora/layer.py, ``ParamWrapper``).
    """
    names = peft_tables.converted_experts(model_type)
    fused = {name for name, parameter in names.items() if parameter == "gate_up_proj"}
    if fused.intersection(experts) and not fused <= set(experts):
        raise TargetError(
            "targetModules",
            f"{' and '.join(sorted(fused))} are one parameter in transformers: name both of them, or neither",
        )
    subject = f"the experts or the router of a model of type {model_type!r}"
    remedy = "set targetModules to auto, or name layers of the attention"
    if isinstance(block, Dora):
        raise MethodMisfitError("targetModules", f"PEFT's DoRA does not adapt {subject}: {remedy}, or use lora")
    if getattr(block, "dropout", 0):
        raise MethodMisfitError("dropout", f"PEFT adapts {subject} without dropout only: set it to 0, or {remedy}")
    if block.changes_base:
        raise MethodMisfitError(
            "init",
            f"{getattr(block, 'init', None)} does not start an adapter of {subject}: set it to default, or {remedy}",
        )


def check_saved(modules: Iterable[str], weighted: Collection[str], saved: list[str]) -> None:
    """Check that every name of ``modulesToSave`` is that of modules with a weight, and of no others.

    Args:
        modules: Full names of all modules that have weights, or contain modules that have.
        weighted: Full names of those with a weight of their own.
        saved: The names.

    Raises:
        TargetError: A name is that of no module, or PEFT would train modules that it does not name.
    """
    names = list(modules)
    has = f"it has: {', '.join(part for part in suffixes(name for name in names if name in weighted))}"
    if missing := [name for name in saved if not _with_suffix(names, name)]:
        raise TargetError(
            "modulesToSave", f"the model has no module named {', '.join(missing)} with weights of its own; {has}"
        )
    for name in saved:
        meant = _with_suffix(names, name)
        if container := next((module for module in meant if module not in weighted), None):
            raise TargetError(
                "modulesToSave",
                f"{name} names {container}, which has no weight of its own but contains other modules: name those; "
                f"{has}",
            )
        if others := [module for module in names if is_trained_whole(module, [name]) and module not in meant]:
            raise TargetError(
                "modulesToSave",
                f"PEFT trains each module whose full name ends with {name}, and so {others[0]} as well: write more of "
                f"the name, for example {meant[0]}",
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


def is_trained_whole(module: str, modules_to_save: Iterable[str]) -> bool:
    """Return whether PEFT trains a copy of the module: its full name ends with one of the names.

    Source: peft/utils/other.py, ``_set_trainable``.
    """
    return any(module.endswith(name) for name in modules_to_save)


def is_saved(module: str, modules_to_save: Iterable[str]) -> bool:
    """Return whether ``modulesToSave`` names the module, or one that contains it, so that it gets no adapter."""
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
        if ends_with(module, target) or target in (f"transformer.{module}", f"model.{module}")
    ]


def _list_suffixes(modules: Iterable[str]) -> str:
    return ", ".join(suffixes(modules))
