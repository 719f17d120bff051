"""Check the options of ``spec.method.peft`` against the loaded model, without PEFT, which the small image lacks."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from finetune_api import peft_tables, roles, targets
from finetune_api.linear import SCORE_HEAD
from finetune_api.methods import ALL_LINEAR, Peft
from finetune_api.targets import MethodMisfitError, MethodOptionError, TargetError
from finetune_artifacts.safetensors import Tensor
from finetune_trainer.models import modules
from finetune_trainer.models.shapes import find_embeddings

Tensors = Mapping[str, Tensor]
_NEEDED = {
    "ADALORA": ("total_step", "the number of optimizer steps; or use spec.method.adalora, which sets it itself"),
    "CARTRIDGE": ("num_virtual_tokens", "the number of learned tokens"),
    "PREFIX_TUNING": ("num_virtual_tokens", "the number of learned tokens"),
    "PROMPT_TUNING": ("num_virtual_tokens", "the number of learned tokens"),
    "P_TUNING": ("num_virtual_tokens", "the number of learned tokens"),
    "TRAINABLE_TOKENS": ("token_indices", "a list of the ids of the tokens to train"),
}
"""An option without which PEFT cannot train, though its configuration does not demand it, and what to set."""
_COUNTS = {
    "block_size", "boft_block_size", "group_size", "init_r", "n_frequency", "num_vectors", "num_virtual_tokens", "r",
    "target_r", "total_step", "vector_length",
}  # fmt: skip
"""Options that are positive whole numbers."""
_NUMBERS = {"alpha", "lora_alpha", "lora_dropout", "module_dropout", "rank_dropout"}
_NAMES = {"exclude_modules": True, "modules_to_save": False, "target_modules": True, "target_parameters": False}
"""Options that are names, and whether a regular expression may stand for them."""
_INITS_OF_BASE = {"pissa": "lora", "olora": "lora", "loftq": "qlora"}
"""Values of ``init_lora_weights`` that change the base's weights, with the method whose ``init`` has them."""
_INITS_FROM_DATA = ("corda", "eva", "lora_ga")
"""Values of ``init_lora_weights`` for which PEFT needs activations or gradients."""
_ANY_MODULE = {"IA3", "LORA", "TRAINABLE_TOKENS", "LN_TUNING", "BEFT", "SHIRA", "OSF"}
"""Types that adapt other modules than linear layers as well."""
_DIVISORS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "C3A": ("block_size", 256, ("in", "out")),
    "VBLORA": ("vector_length", 256, ("in", "out")),
    "ROAD": ("group_size", 64, ("out",)),
    "BOFT": ("boft_block_size", 4, ("in",)),
}
"""An option that must divide features of each adapted layer, with PEFT's default."""
_LIMITS: dict[str, tuple[str, int, Callable[[int, int], int], str]] = {
    "MISS": ("r", 64, lambda inputs, outputs: inputs, "the input features"),
    "PSOFT": ("r", 32, min, "the smaller number of features"),
    "SHIRA": ("r", 32, lambda inputs, outputs: inputs * outputs // (inputs + outputs), "the highest rank"),
    "FOURIERFT": ("n_frequency", 1000, lambda inputs, outputs: inputs * outputs, "the size of the weight"),
    "WAVEFT": ("n_frequency", 2592, lambda inputs, outputs: inputs * outputs, "the size of the weight"),
}
"""An option that must not be higher than a size of each adapted layer, with PEFT's default."""
_OTHER_DEFAULTS = ("gpt2", "gpt_bigcode")
"""Types of models in which some of these types adapt other modules than LoRA by default."""


def check_options(block: Peft, model_type: str, layers: int | None, tensors: Tensors) -> None:
    """Check the values that are known to end in an error, or to train nothing.

    Args:
        block: The block of the method.
        model_type: ``model_type`` of the loaded model's configuration.
        layers: The number of layers; None if it is not known.
        tensors: The tensors of the loaded model.

    Raises:
        TargetError: An option has a wrong value. The error's field is ``options.<name>``.
    """
    options = {name: value for name, value in block.options.items() if value is not None}
    needed = _NEEDED.get(block.type)
    if needed and not options.get(needed[0]):
        raise MethodOptionError(f"options.{needed[0]}", f"PEFT's {block.type} needs it: set it to {needed[1]}")
    for name, value in options.items():
        _check_type(name, value, block.type)
    _check_unsupported(options, block.type, model_type)
    _check_ids(options, layers, tensors)
    chosen = _check_targets(options, block.type, model_type, tensors)
    _check_saved(options, tensors)
    _check_sizes(options, block.type, chosen)


def _check_type(name: str, value: Any, kind: str) -> None:
    """Check the kind of a value. PEFT's configuration does not, and fails later. Raises MethodOptionError."""
    if name in _COUNTS and not (_is_whole(value) and value >= (0 if kind in ("OFT", "BOFT") else 1)):
        expected = "a positive whole number"
    elif name in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
        expected = "a number"
    elif name in _NAMES and not _is_names(value, text=_NAMES[name]):
        expected = "a string or a list of names" if _NAMES[name] else "a list of names"
    else:
        return
    raise MethodOptionError(f"options.{name}", f"it must be {expected}, found {value!r}: correct it")


def _check_unsupported(options: Mapping[str, Any], kind: str, model_type: str) -> None:
    start = str(options.get("init_lora_weights", "")).lower()
    if method := next((method for init, method in _INITS_OF_BASE.items() if start.startswith(init)), None):
        raise MethodOptionError(
            "options.init_lora_weights",
            f"{start} changes the base's weights, which spec.method.peft does not publish: use "
            f"spec.method.{method}.init, or remove it",
        )
    if start in _INITS_FROM_DATA:
        raise MethodOptionError(
            "options.init_lora_weights", f"{start} needs a pass over the data that the trainer does not make: remove it"
        )
    if "alora_invocation_tokens" in options:
        raise MethodOptionError(
            "options.alora_invocation_tokens",
            "activated LoRA is not supported, because the training rows have no invocation tokens: remove it",
        )
    names = options.get("target_modules")
    reached = isinstance(names, list) and {roles.last_part(name) for name in names} & _experts(kind, model_type).keys()
    for name in ("use_dora", "lora_dropout"):
        if kind == "LORA" and options.get(name) and (options.get("target_parameters") or reached):
            raise MethodMisfitError(
                f"options.{name}", "PEFT does not adapt experts or other parameters with it: remove it, or name layers"
            )


def _check_ids(options: Mapping[str, Any], layers: int | None, tensors: Tensors) -> None:
    embeddings = find_embeddings(tensors)
    limits = {"layers_to_transform": layers}
    limits |= dict.fromkeys(
        ("token_indices", "trainable_token_indices"), embeddings[1].shape[0] if embeddings else None
    )
    for name, limit in limits.items():
        for number in _list_ids(options.get(name)):
            if not _is_whole(number) or number < 0 or (limit is not None and number >= limit):
                raise MethodMisfitError(
                    f"options.{name}",
                    f"{number!r} is not among the numbers that the model has, 0 to {(limit or 1) - 1}: correct it",
                )


def _list_ids(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [number for numbers in value.values() for number in _list_ids(numbers)]
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def _check_targets(
    options: Mapping[str, Any], kind: str, model_type: str, tensors: Tensors
) -> dict[str, tuple[int, int]]:
    """Check that each name matches; return the matrices of the adapted linear layers, as far as they are named."""
    linear, wanted = modules.list_linear_modules(tensors), options.get("target_modules")
    for name in options.get("target_parameters") or ():
        if not any(roles.ends_with(tensor, name) for tensor in tensors):
            parameters = roles.suffixes(tensor for tensor in tensors if not tensor.endswith((".weight", ".bias")))
            has = f"it has: {', '.join(parameters)}" if parameters else "it has none outside its layers"
            raise TargetError("options.target_parameters", f"the model has no parameter named {name}; {has}")
    if wanted == ALL_LINEAR:
        return linear
    wanted = wanted or _default_targets(kind, model_type, linear)
    adaptable = modules.list_weighted(tensors) if kind in _ANY_MODULE else list(linear)
    experts = _experts(kind, model_type)
    if isinstance(wanted, str):
        chosen = [name for name in adaptable if _matches(wanted, name)]
        if not chosen:
            raise TargetError(
                "options.target_modules",
                f"the regular expression {wanted!r} matches the full name of no module. Full names look like "
                f"{adaptable[0]}: correct it, or write all-linear, or a list of names",
            )
    else:
        chosen = _match_names([name for name in wanted if roles.last_part(name) not in experts], adaptable)
    if kind == "LORA" and (heads := [name for name in chosen if roles.last_part(name) in ("lm_head", SCORE_HEAD)]):
        raise MethodMisfitError(
            "options.target_modules",
            f"{heads[0]} is the output head, which gets no adapter: remove it, and to train it whole write "
            "modules_to_save",
        )
    return {name: linear[name] for name in chosen if name in linear}


def _default_targets(kind: str, model_type: str, linear: Iterable[str]) -> list[str]:
    """Return PEFT's default modules of a type whose options are compared with sizes: they are those of LoRA."""
    if kind not in _DIVISORS.keys() | _LIMITS.keys() or model_type in _OTHER_DEFAULTS:
        return []
    defaults, names = peft_tables.default_targets("LORA", model_type), set(roles.suffixes(linear))
    return defaults if isinstance(defaults, list) and names.issuperset(defaults) else []


def _match_names(wanted: list[str], modules: Iterable[str]) -> list[str]:
    names, chosen = list(modules), []
    for name in wanted:
        matched = [module for module in names if roles.ends_with(module, name)]
        if not matched:
            raise TargetError(
                "options.target_modules",
                f"the model has no module named {name} that gets an adapter; it has: "
                f"{', '.join(roles.suffixes(names))}. Choose among these, or write all-linear",
            )
        chosen += matched
    return chosen


def _check_saved(options: Mapping[str, Any], tensors: Tensors) -> None:
    try:
        targets.check_saved(
            modules.list_modules(tensors), modules.list_weighted(tensors), options.get("modules_to_save") or []
        )
    except TargetError as error:
        raise TargetError("options.modules_to_save", str(error)) from error


def _check_sizes(options: Mapping[str, Any], kind: str, chosen: Mapping[str, tuple[int, int]]) -> None:
    if kind in _DIVISORS:
        name, default, sides = _DIVISORS[kind]
        value = options.get(name, default)
        for module, (outputs, inputs) in chosen.items() if value and "boft_block_num" not in options else ():
            for side, features in (("in", inputs), ("out", outputs)):
                if side in sides and features % value:
                    raise MethodMisfitError(
                        f"options.{name}",
                        f"{value} does not divide the {features} {side}put features of {module}: set it to a divisor",
                    )
    elif kind in _LIMITS and chosen:
        name, default, limit_of, what = _LIMITS[kind]
        value = options.get(name, default)
        limit, module = min((limit_of(inputs, outputs), module) for module, (outputs, inputs) in chosen.items())
        if value > limit:
            raise MethodMisfitError(
                f"options.{name}", f"{value} is more than {limit}, {what} of {module}: set it to {limit} or less"
            )


def _matches(expression: str, name: str) -> bool:
    try:
        return bool(re.fullmatch(expression, name))
    except re.error as error:
        raise TargetError(
            "options.target_modules", f"{expression!r} is no regular expression ({error}): correct it"
        ) from error


def _experts(kind: str, model_type: str) -> dict[str, str]:
    return peft_tables.converted_experts(model_type) if kind == "LORA" else {}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_names(value: Any, *, text: bool) -> bool:
    if isinstance(value, str):
        return text
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)
