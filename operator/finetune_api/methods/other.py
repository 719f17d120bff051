"""Define any other method of PEFT, by the names of PEFT's own configuration."""

import difflib
from typing import Any, ClassVar

from pydantic import Field, model_validator

from finetune_api import peft_tables
from finetune_api.estimate.modules import Architecture, NotCountedError
from finetune_api.methods.block import Block

OTHER_PREFIX_TYPES = ("CARTRIDGE",)
"""PEFT types without a block of their own that put learned keys and values before the text."""
OTHER_PROMPT_TYPES = ("CPT",)
"""PEFT types without a block of their own that put learned tokens before the text."""
UNSUITED = {
    "ADAMSS": "it needs scikit-learn, which the trainer does not have",
    "ADAPTION_PROMPT": "it replaces the model's forward pass, which TRL's trainers need",
    "CPT": "its loss needs the logits, which the trainer's loss does not keep",
    "MULTITASK_PROMPT_TUNING": "its rows must name a task",
    "POLY": "its rows must name a task",
    "SHADOW": "it needs a second model",
    "XLORA": "it mixes adapters that exist already",
}
"""PEFT types that cannot train a causal language model on plain rows, each with the reason; every type was tried."""


class Peft(Block):
    """Any other method of PEFT, by the names of PEFT's own configuration."""

    peft_type: ClassVar[str] = ""
    """The user names it in ``type``; ``Method.peft_type`` returns that."""
    default_learning_rate: ClassVar[float] = 1e-4

    type: str = Field(
        description="PEFT's name of the method, for example LORA or BOFT (peft.PeftType).",
        pattern=r"^[A-Z0-9_]+$",
        max_length=64,
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of the method's configuration class, by PEFT's own names, for example "
        "{r: 8, target_modules: all-linear}.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )

    @model_validator(mode="after")
    def _check_names(self) -> "Peft":
        options, version = peft_tables.options(self.type), peft_tables.version()
        if options is None:
            raise ValueError(
                f"type: PEFT {version} has no method {self.type}: {_suggest(self.type, peft_tables.peft_types())}"
            )
        if obstacle := UNSUITED.get(self.type):
            raise ValueError(f"type: {self.type} cannot be trained here, because {obstacle}: choose another method")
        for name in self.options:
            if name not in options:
                raise ValueError(
                    f"options: {self.type} has no option {name!r} in PEFT {version}: {_suggest(name, options)}"
                )
        return self

    def count_parameters(self, architecture: Architecture) -> int:
        """Raise NotCountedError: the estimate knows no closed form."""
        raise NotCountedError(f"the estimate has no closed form for PEFT's {self.type}")


def _suggest(name: str, candidates: list[str]) -> str:
    similar = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(similar)}?" if similar else f"it has: {', '.join(candidates)}"
