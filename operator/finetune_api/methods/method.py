"""Define the section ``spec.method``: exactly one block."""

from typing import get_args

from pydantic import Field, model_validator

from finetune_api.base import Model
from finetune_api.methods.adalora import Adalora
from finetune_api.methods.block import Block
from finetune_api.methods.bottleneck import Bottleneck
from finetune_api.methods.full import Full
from finetune_api.methods.ia3 import Ia3
from finetune_api.methods.lora import Dora, Lora, Qlora, Quantization
from finetune_api.methods.lycoris import Loha, Lokr
from finetune_api.methods.miss import Miss
from finetune_api.methods.oft import Oft
from finetune_api.methods.other import OTHER_PREFIX_TYPES, OTHER_PROMPT_TYPES, Peft
from finetune_api.methods.prompts import PrefixTuning, PromptTuning, PTuning
from finetune_api.methods.vera import Vera


class Method(Model):
    """The fine-tuning method: exactly one of the fields."""

    lora: Lora | None = Field(None, description="Low-rank adaptation.")
    qlora: Qlora | None = Field(None, description="Low-rank adaptation of a base held in 4 or 8 bits.")
    dora: Dora | None = Field(None, description="Weight-decomposed low-rank adaptation.")
    adalora: Adalora | None = Field(None, description="Low-rank adaptation that moves rank between modules.")
    ia3: Ia3 | None = Field(None, description="Learned scaling of activations.")
    vera: Vera | None = Field(None, description="Learned scaling of shared random matrices.")
    loha: Loha | None = Field(None, description="Low-rank Hadamard product.")
    lokr: Lokr | None = Field(None, description="Low-rank Kronecker product.")
    oft: Oft | None = Field(None, description="Orthogonal fine-tuning.")
    miss: Miss | None = Field(None, description="Matrix shard sharing.")
    prefix_tuning: PrefixTuning | None = Field(None, description="Learned keys and values before the text.")
    prompt_tuning: PromptTuning | None = Field(None, description="Learned embeddings before the text.")
    p_tuning: PTuning | None = Field(None, description="Learned embeddings before the text, from a small network.")
    bottleneck: Bottleneck | None = Field(None, description="Small layers in series with those of the base.")
    full: Full | None = Field(None, description="Training of all weights of the model.")
    peft: Peft | None = Field(None, description="Any other method of PEFT.")

    @model_validator(mode="after")
    def _check_one(self) -> "Method":
        if len(self._set_fields()) != 1:
            raise ValueError(ONE_METHOD)
        return self

    def _set_fields(self) -> list[str]:
        return [name for name in Method.model_fields if getattr(self, name) is not None]

    @classmethod
    def of(cls, block: Block) -> "Method":
        """Return the method whose one block is ``block``."""
        (name,) = (name for name, kind in BLOCKS.items() if kind is type(block))
        return cls.model_validate({name: block})

    @property
    def name(self) -> str:
        """Return the field that is set, in camelCase: ``lora``, ``prefixTuning``."""
        (name,) = self._set_fields()
        return str(Method.model_fields[name].alias)

    @property
    def config(self) -> Block:
        """Return the one block that is set."""
        (name,) = self._set_fields()
        block: Block = getattr(self, name)
        return block

    @property
    def peft_type(self) -> str:
        """Return PEFT's name of the method; FULL and BOTTLENECK for what PEFT does not have."""
        return self.peft.type if self.peft else self.config.peft_type

    @property
    def quantization(self) -> Quantization | None:
        """Return how the base's weights are quantised; None if they are not."""
        return self.config.base_quantization

    def quantize(self) -> "Method | None":
        """Return the same adapter on a base in 4 bits; None if there is none, or the base is quantised already."""
        block = self.config.quantize()
        return None if block is None else Method.of(block)


BLOCKS: dict[str, type[Block]] = {
    str(field.alias): next(kind for kind in get_args(field.annotation) if kind is not type(None))
    for field in Method.model_fields.values()
}
"""The class of each method, by its name in ``spec.method``."""


def is_mergeable(peft_type: str) -> bool:
    """Return whether an adapter of this PEFT type can be merged into its base."""
    blocks = [block for block in BLOCKS.values() if block.peft_type == peft_type]
    is_supported = all(block.is_mergeable and not block.trains_all_weights for block in blocks)
    return is_supported and peft_type not in (*OTHER_PREFIX_TYPES, *OTHER_PROMPT_TYPES)


METHODS: tuple[str, ...] = tuple(BLOCKS)
"""The names of all methods, in camelCase."""
ONE_METHOD = f"exactly one method must be set: {', '.join(METHODS[:-1])} or {METHODS[-1]}"
Method.cel_rules = [
    {"rule": f"[{', '.join(f'has(self.{name})' for name in METHODS)}].filter(x, x).size() == 1", "message": ONE_METHOD}
]
