"""Check from descriptions alone whether an engine can serve an adapter, before any pod is touched. Pure.

What neither the engine's arguments nor the FineTuneJob's status says is not checked here; the agent checks the files.
"""

from collections.abc import Collection
from dataclasses import dataclass

from finetune_api.finetunejob import AdapterStatus
from finetune_api.reasons import Reason
from finetune_engines.base import Engine
from finetune_operator.policies.engine_args import EngineArgs

PACKED_MODULES = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""Modules that an engine keeps as one, and the name of that."""
COMPARABLE_MODULES = frozenset({*PACKED_MODULES, *PACKED_MODULES.values(), "o_proj", "down_proj"})
"""Modules of which both names are known. Others may have any name in the engine, so nothing is said of them."""


@dataclass(frozen=True)
class Misfit:
    """Why the engine cannot serve the adapter, with what to do about it."""

    reason: Reason
    message: str


def find_misfits(adapter: AdapterStatus | None, arguments: EngineArgs, engine: Engine, container: str) -> list[Misfit]:
    """Find every reason for which the engine cannot serve the adapter.

    Args:
        adapter: What the FineTuneJob says of the adapter; None: nothing is known.
        arguments: What the engine's arguments say.
        engine: The engine.
        container: Which container runs it, for the messages.
    """
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
    return misfits


def find_warnings(adapter: AdapterStatus | None, arguments: EngineArgs, engine: Engine, adapters: int) -> list[str]:
    """Find what does not keep the adapter from being served, but should be known.

    Args:
        adapter: What the FineTuneJob says of the adapter; None: nothing is known.
        arguments: What the engine's arguments say.
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
