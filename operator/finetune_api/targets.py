"""Which modules of a model a method adapts, told from their names alone, as PEFT tells it."""

import re
from collections.abc import Iterable, Sequence

from finetune_api import peft_tables
from finetune_api.methods import ALL_LINEAR, Ia3, LoraFields, Targeted


class TargetError(ValueError):
    """A field of the method names a module that the model does not have. ``field`` is its name below the method."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def adapted(linear: Sequence[str], block: Targeted, method: str, model_type: str) -> list[str]:
    """The modules that get an adapter, of all linear layers but the output head. Raises TargetError.

    ``linear`` are whole module names; ``method`` is the field of ``spec.method``, ``model_type`` that of the model's config.json.
    """
    targets = resolved(block.target_modules, method, model_type)
    if targets == ALL_LINEAR:
        chosen = list(linear)
    elif isinstance(targets, str):
        chosen = [name for name in linear if _fullmatch(targets, name)]
        if not chosen:
            raise TargetError(
                "targetModules",
                f"the regular expression {targets!r} matches the whole name of no linear module; names look like {linear[0]}, and end in: "
                f"{_listed(linear)}. Correct it, or write all-linear",
            )
    else:
        if missing := [target for target in targets if not _ending(linear, target)]:
            raise TargetError(
                "targetModules",
                f"the model has no linear module named {', '.join(missing)}; it has: {_listed(linear)}. Choose among these, or write all-linear",
            )
        wanted = {name for target in targets for name in _ending(linear, target)}
        chosen = [name for name in linear if name in wanted]
    chosen = [name for name in chosen if not _inside(name, block.modules_to_save)]
    if not chosen:
        raise TargetError(
            "modulesToSave", "every module of targetModules is in modulesToSave, so that none is adapted: take some out"
        )
    _check_patterns(chosen, block)
    return chosen


def resolved(targets: str | list[str], method: str, model_type: str) -> str | list[str]:
    """``targetModules`` with the architecture's defaults in place of an empty list. Raises TargetError if PEFT has none."""
    if targets:
        return targets
    found = peft_tables.default_targets(method, model_type)
    if found is None:
        raise TargetError(
            "targetModules",
            f"PEFT {peft_tables.version()} has no default modules of {method} for a model of type {model_type!r}: write all-linear, or a list of module names",
        )
    return found


def feedforward(chosen: Iterable[str], block: Ia3, model_type: str) -> list[str]:
    """Those of the adapted modules whose input IA³ scales. Raises TargetError."""
    names = block.feedforward_modules
    if names is None:
        names = peft_tables.default_feedforward(model_type)
        if names is None:
            raise TargetError(
                "feedforwardModules",
                f"PEFT {peft_tables.version()} has no default feed-forward modules for a model of type {model_type!r}: list those of targetModules whose input "
                "is to be scaled, or write []",
            )
        return [module for module in chosen if any(_ending([module], name) for name in names)]
    modules = list(chosen)
    if missing := [name for name in names if not _ending(modules, name)]:
        raise TargetError(
            "feedforwardModules",
            f"{', '.join(missing)} is none of the adapted modules, which are: {_listed(modules)}. Add it to targetModules, or take it out",
        )
    return [module for module in modules if any(_ending([module], name) for name in names)]


def check_saved(modules: Iterable[str], saved: list[str]) -> None:
    """Every name of ``modulesToSave`` is that of a module. Raises TargetError."""
    names = list(modules)
    if missing := [name for name in saved if not _ending(names, name)]:
        raise TargetError(
            "modulesToSave",
            f"the model has no module named {', '.join(missing)} with weights of its own; it has: "
            f"{', '.join(part for part in suffixes(names) if not part.isdigit())}",
        )


def check_expression(modules: Iterable[str], linear: Iterable[str], target: str | list[str]) -> None:
    """A regular expression for ``targetModules`` matches linear modules only: PEFT refuses others. Raises TargetError."""
    if isinstance(target, list) or target == ALL_LINEAR:
        return
    known = set(linear)
    for name in modules:
        if name not in known and _fullmatch(target, name):
            raise TargetError(
                "targetModules",
                f"the regular expression {target!r} also matches {name}, which is no linear module: let it end with the names of linear modules, for example "
                f"{r'.*'}({'|'.join(suffixes(known)[:2])})",
            )


def of_module(pattern: dict[str, int], module: str, default: int) -> int:
    """The value for a module: that of the first key of ``rankPattern`` that matches, as PEFT matches, or the default."""
    return next((value for key, value in pattern.items() if _matches_key(key, module)), default)


def suffixes(modules: Iterable[str]) -> list[str]:
    """The last parts of the modules' names, each once, in their order."""
    return list(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules))


def _check_patterns(chosen: list[str], block: Targeted) -> None:
    if not isinstance(block, LoraFields):
        return
    for field, pattern in (("rankPattern", block.rank_pattern), ("alphaPattern", block.alpha_pattern)):
        for key in pattern:
            try:
                found = any(_matches_key(key, module) for module in chosen)
            except re.error as error:
                raise TargetError(field, f"{key!r} is no regular expression ({error}): correct it") from error
            if not found:
                raise TargetError(field, f"{key!r} matches none of the adapted modules, which are: {_listed(chosen)}")


def _matches_key(key: str, module: str) -> bool:
    return bool(re.match(rf"(.*\.)?({key})$", module))


def _fullmatch(expression: str, name: str) -> bool:
    """Files of GPT-2's time leave out the first part of the names that the loaded model has."""
    return any(re.fullmatch(expression, full) for full in (name, f"transformer.{name}", f"model.{name}"))


def _ending(modules: Iterable[str], target: str) -> list[str]:
    return [
        module
        for module in modules
        if module == target or module.endswith(f".{target}") or target in (f"transformer.{module}", f"model.{module}")
    ]


def _inside(module: str, saved: list[str]) -> bool:
    return any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module) for name in saved)


def _listed(modules: Iterable[str]) -> str:
    return ", ".join(suffixes(modules))
