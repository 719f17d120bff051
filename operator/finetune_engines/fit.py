"""Check whether an engine can serve an adapter, from its arguments and the FineTuneJob. Pure.

It runs before any pod changes. The agent checks the files of the adapter later.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune_api.reasons import Reason
from finetune_api.version_paths import path_variable
from finetune_engines.arguments import EngineArgs
from finetune_engines.base import Engine

PACKED_MODULES = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""Modules that an engine merges into one, with the name of the merged module."""
COMPARABLE_MODULES = frozenset({*PACKED_MODULES, *PACKED_MODULES.values(), "o_proj", "down_proj"})
"""Modules whose names in the engine are known. Others may have any name there, so they are not compared."""
COMMIT = re.compile(r"[0-9a-f]{40}")


class Adapter(Protocol):
    """An adapter, from the status of its FineTuneJob or predicted from its spec."""

    @property
    def peft_type(self) -> str:
        """PEFT's name of the method."""
        ...

    @property
    def rank(self) -> int | None:
        """Rank of a LoRA."""
        ...

    @property
    def target_modules(self) -> Sequence[str]:
        """Modules that carry an adapter; none if they are not known."""
        ...

    @property
    def servable_by(self) -> Sequence[str]:
        """Engines that can load it."""
        ...

    @property
    def base_model(self) -> str:
        """Name of the base model."""
        ...

    @property
    def base_revision(self) -> str | None:
        """Commit of the base model."""
        ...


@dataclass(frozen=True)
class Misfit:
    """Why the engine cannot serve the adapter, with what to do about it."""

    reason: Reason
    message: str


def find_misfits(
    name: str,
    adapter: Adapter | None,
    arguments: EngineArgs,
    engine: Engine,
    container: str,
    versions: Collection[str | None] = (),
) -> list[Misfit]:
    """Find every reason for which the engine cannot serve the adapter.

    Args:
        name: Name of the AdapterDeployment.
        adapter: The adapter; None if it is unknown, or merged into its base.
        arguments: The settings of the engine's command line.
        engine: The engine.
        container: Name of the container that runs it, for the messages.
        versions: Versions of the engine that its pods have reported so far; None for a pod that reports none.
    """
    if engine.serves_merged:
        return _find_unnamed_model(path_variable(name), arguments, container)
    if arguments.lora is False:
        text = f"{container} starts {engine.title} without {engine.lora_arguments[0]}, so it can serve no adapter"
        return [Misfit(Reason.LORA_DISABLED, f"{text}: add the argument")]
    if adapter is None:
        return []
    misfits = []
    if engine.name not in adapter.servable_by:
        engines = ", ".join(adapter.servable_by) or "no engine"
        text = (
            f"{engine.title} cannot serve this adapter (method {adapter.peft_type}; it can be served by {engines}): "
            "train it with lora or qlora"
        )
        misfits.append(Misfit(Reason.ADAPTER_UNSUPPORTED, text))
    maximum = arguments.max_lora_rank
    if maximum is not None and adapter.rank is not None and adapter.rank > maximum:
        text = (
            f"the adapter's rank is {adapter.rank}, the maximum of {container} ({engine.max_rank_argument}) is "
            f"{maximum}: {engine.rank_remedy(adapter.rank, maximum)}"
        )
        misfits.append(Misfit(Reason.RANK_TOO_HIGH, text))
    if arguments.modules is not None and _are_disjoint(adapter.target_modules, arguments.modules):
        text = (
            f"the adapter changes {', '.join(adapter.target_modules)}, and {container} applies adapters only to "
            f"{', '.join(arguments.modules)} ({engine.modules_argument}), so the base would answer: add the adapter's "
            "modules to the argument, or remove it"
        )
        misfits.append(Misfit(Reason.ADAPTER_UNSUPPORTED, text))
    misfits += _find_version_misfits(adapter, engine, versions)
    return misfits


def _find_unnamed_model(variable: str, arguments: EngineArgs, container: str) -> list[Misfit]:
    if variable in arguments.paths:
        return []
    text = (
        f"{container} does not name the merged model, so it would serve another one: write $({variable}), which is the "
        "model's directory, into its command or args in place of the model"
    )
    return [Misfit(Reason.MODEL_NOT_NAMED, text)]


def _find_version_misfits(adapter: Adapter, engine: Engine, versions: Collection[str | None]) -> list[Misfit]:
    """Find why every running version serves the adapter wrongly; none if a version serves it correctly."""
    config = {"peft_type": adapter.peft_type}
    problems = [engine.judge_version(version).find_misserved(config) for version in versions]
    if not problems or not all(problems):
        return []
    return [
        Misfit(Reason.ADAPTER_UNSUPPORTED, text) for text in dict.fromkeys(text for texts in problems for text in texts)
    ]


def find_warnings(adapter: Adapter | None, arguments: EngineArgs, engine: Engine, adapters: int) -> list[str]:
    """Find warnings about an adapter that can be served.

    Args:
        adapter: The adapter; None if it is unknown.
        arguments: The LoRA settings of the engine's command line.
        engine: The engine.
        adapters: How many adapters it is to serve.
    """
    warnings = []
    if arguments.slots is not None and arguments.slots <= adapters:
        named = " or ".join(engine.slot_arguments)
        warnings.append(
            f"{engine.title} has {arguments.slots} in memory at once ({named}), and needs room for {adapters + 1} "
            "adapters while a new version is proven beside the served one: they evict one another. Start it with "
            f"{engine.slot_arguments[0]} {adapters + 1} or more"
        )
    if adapter is not None and _is_another_base(arguments.base, adapter.base_model):
        warnings.append(
            f"{engine.title} serves the base {arguments.base}, and the adapter was trained on {adapter.base_model}: "
            "the proof on each pod decides whether they are the same"
        )
    elif adapter is not None and _is_another_commit(arguments.revision, adapter.base_revision):
        warnings.append(
            f"{engine.title} serves revision {arguments.revision} of the base (--revision), and the adapter was "
            f"trained on {adapter.base_revision}: the proof on each pod decides whether they are the same"
        )
    if arguments.chat_template is not None:
        warnings.append(
            f"{engine.title} formats chats with {arguments.chat_template} (--chat-template), and FineTuneJobs train "
            "with the base's own template: chats differ from what was trained unless both are the same. "
            "Remove the argument, or compare the two"
        )
    return warnings


def _are_disjoint(adapted: Collection[str], applied: Collection[str]) -> bool:
    """Return whether the engine applies no module of the adapter, as far as the names can be compared."""
    if not adapted or not COMPARABLE_MODULES.issuperset([*adapted, *applied]):
        return False
    return {PACKED_MODULES.get(name, name) for name in adapted}.isdisjoint(
        PACKED_MODULES.get(name, name) for name in applied
    )


def _is_another_base(served: str | None, trained: str) -> bool:
    """Return whether both are names on a hub, and different ones. A path may be anything."""
    names = [name for name in (served, trained) if name is not None and name.count("/") == 1 and name[0].isalnum()]
    return len(names) == 2 and names[0].lower() != names[1].lower()


def _is_another_commit(served: str | None, trained: str | None) -> bool:
    """Return whether both are commits, and different ones. A branch or tag may be anything."""
    return served != trained and all(text is not None and COMMIT.fullmatch(text) for text in (served, trained))
