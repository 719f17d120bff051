"""Define a rule, and how it selects the methods to which it applies: in CEL, and for a parsed spec."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.methods import BLOCKS, Block, Method

if TYPE_CHECKING:
    from finetune_api.finetunejob.spec import FineTuneJobSpec


@dataclass(frozen=True)
class Rule:
    """A combination of sections that a FineTuneJob must not have.

    The API server evaluates ``cel``; ``breaks`` checks files that never meet an API server.
    """

    cel: str
    """CEL expression over ``spec`` that is true where the rule is kept."""
    field: str
    """Path below ``spec`` of the field to which the API server attaches the message."""
    message: str
    breaks: "Callable[[FineTuneJobSpec], bool]"
    """Return whether a parsed spec breaks the rule."""


@dataclass(frozen=True)
class MethodSet:
    """Some methods: the names of blocks, and PEFT types of the block ``peft``."""

    names: tuple[str, ...]
    peft_types: tuple[str, ...] = ()

    @property
    def cel(self) -> str:
        """Return the CEL expression that is true for a spec with one of these methods."""
        terms = [f"has(self.method.{name})" for name in self.names]
        if self.peft_types:
            terms.append(f"(has(self.method.peft) && self.method.peft.type in {list(self.peft_types)})")
        return f"({' || '.join(terms)})" if len(terms) > 1 else terms[0]

    def __contains__(self, method: Method) -> bool:
        """Return whether a method is one of these."""
        return method.name in self.names or (method.peft is not None and method.peft.type in self.peft_types)


def methods_where(states: Callable[[type[Block]], bool], *, peft_types: tuple[str, ...] | None = None) -> MethodSet:
    """Select methods by a fact that their blocks state.

    Args:
        states: Return whether a block states the fact.
        peft_types: PEFT types without a block for which the fact holds. Set: the block ``peft`` is included, with
            these types and with those of the selected blocks. None: the block ``peft`` is not included.
    """
    blocks = {name: block for name, block in BLOCKS.items() if states(block)}
    types = () if peft_types is None else (*(block.peft_type for block in blocks.values()), *peft_types)
    return MethodSet(tuple(blocks), types)
