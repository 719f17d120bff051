"""Define ``spec.method``: a block for each way to fine-tune, with PEFT's names in camelCase.

A block holds everything about its method that needs no torch: its fields, its default learning rate, its PEFT type,
what it can be combined with, and its terms of the estimate. It must not know how PEFT is called: the trainer does.
"""

from finetune_api.methods.adalora import Adalora
from finetune_api.methods.block import ALL_LINEAR, AUTO, Block, Targeted, VirtualTokens
from finetune_api.methods.bottleneck import Bottleneck
from finetune_api.methods.full import Full
from finetune_api.methods.ia3 import Ia3
from finetune_api.methods.lora import Dora, Lora, LoraFields, Qlora, Quantization, matches_pattern
from finetune_api.methods.lycoris import Loha, Lokr
from finetune_api.methods.method import BLOCKS, METHODS, Method, is_mergeable
from finetune_api.methods.miss import Miss
from finetune_api.methods.oft import Oft
from finetune_api.methods.other import OTHER_PREFIX_TYPES, OTHER_PROMPT_TYPES, Peft
from finetune_api.methods.prompts import PrefixTuning, PromptTuning, PTuning
from finetune_api.methods.vera import Vera

__all__ = [
    "ALL_LINEAR", "AUTO", "BLOCKS", "METHODS", "OTHER_PREFIX_TYPES", "OTHER_PROMPT_TYPES", "Adalora", "Block",
    "Bottleneck", "Dora", "Full", "Ia3", "Loha", "Lokr", "Lora", "LoraFields", "Method", "Miss", "Oft", "PTuning",
    "Peft", "PrefixTuning", "PromptTuning", "Qlora", "Quantization", "Targeted", "Vera", "VirtualTokens",
    "is_mergeable", "matches_pattern",
]  # fmt: skip
