"""Define the rules between the method and the training, the output and the adapter to start from."""

from finetune_api.combinations.rule import Rule, methods_where
from finetune_api.methods import BLOCKS, OTHER_PREFIX_TYPES, OTHER_PROMPT_TYPES

PREFIX = methods_where(lambda block: block.prepends_keys_and_values, peft_types=OTHER_PREFIX_TYPES)
PROMPT = methods_where(lambda block: block.is_prompt_learning, peft_types=(*OTHER_PREFIX_TYPES, *OTHER_PROMPT_TYPES))
NOT_MERGEABLE = methods_where(lambda block: not block.is_mergeable and not block.is_prompt_learning)
FULL = methods_where(lambda block: block.trains_all_weights)
INCOMPLETE = methods_where(lambda block: not block.adapter_is_complete)
SHARDABLE = methods_where(lambda block: block.supports_sharding)
BASE_CHANGING = " || ".join(
    f"(has(self.method.{name}) && self.method.{name}.init in {list(block.base_changing_inits)})"
    for name, block in BLOCKS.items()
    if block.base_changing_inits
)
"""CEL: ``init`` moves a part of the base into the adapter."""

SHARDED = (
    "sharding full splits a frozen base over several GPUs: it needs resources.gpusPerNode above 1, objective sft and "
    "method lora, without modulesToSave, without init pissa or olora (they change the base) and without compile "
    "always: set sharding to none, or change these fields"
)
PACKED_PROMPT = (
    "packing cannot be combined with promptTuning, prefixTuning and pTuning, which put their tokens before each "
    "sequence and not before each packed example: set packing to false"
)
RECOMPUTED_PREFIX = (
    "gradientCheckpointing always cannot be combined with prefixTuning, because the recomputation would lose its keys "
    "and values: set gradientCheckpointing to auto"
)
MERGED_PROMPT = (
    "mergedModel cannot be combined with promptTuning, prefixTuning, pTuning and bottleneck, which are no update of "
    "the base's weights: set mergedModel to false"
)
MERGED_FULL = (
    "mergedModel cannot be combined with method full, whose result is a complete model already: set mergedModel to "
    "false"
)
STARTED_INCOMPLETE = (
    "model.adapter cannot be combined with full, adalora, pTuning and prefixProjection, whose adapters do not contain "
    "all that was trained: remove model.adapter, or choose lora"
)
STARTED_WITH_INIT = (
    "model.adapter cannot be combined with init pissa, olora and loftq, because the adapter has its initial values "
    "already: set init to default"
)

RULES = [
    Rule(
        "self.training.sharding == 'none' || (self.training.compile != 'always' && self.resources.gpusPerNode > 1 && "
        "self.objective == 'sft' && has(self.method.lora) && !(self.method.lora.init in ['pissa', 'olora']) && "
        "(!has(self.method.lora.modulesToSave) || size(self.method.lora.modulesToSave) == 0))",
        ".training.sharding",
        SHARDED,
        lambda spec: (
            spec.training.sharding != "none"
            and (
                spec.method not in SHARDABLE
                or spec.method.config.changes_base
                or bool(getattr(spec.method.config, "modules_to_save", None))
                or spec.resources.processes < 2
                or spec.training.compile == "always"
                or spec.objective != "sft"
            )
        ),
    ),
    Rule(
        f"!(has(self.training.packing) && self.training.packing && {PROMPT.cel})",
        ".training.packing",
        PACKED_PROMPT,
        lambda spec: spec.training.packs and spec.method in PROMPT,
    ),
    Rule(
        f"!(self.training.gradientCheckpointing == 'always' && {PREFIX.cel})",
        ".training.gradientCheckpointing",
        RECOMPUTED_PREFIX,
        lambda spec: spec.training.gradient_checkpointing == "always" and spec.method in PREFIX,
    ),
    Rule(
        f"!(self.output.mergedModel && ({PROMPT.cel} || {NOT_MERGEABLE.cel}))",
        ".output.mergedModel",
        MERGED_PROMPT,
        lambda spec: spec.output.merged_model and (spec.method in PROMPT or spec.method in NOT_MERGEABLE),
    ),
    Rule(
        f"!(self.output.mergedModel && {FULL.cel})",
        ".output.mergedModel",
        MERGED_FULL,
        lambda spec: spec.output.merged_model and spec.method in FULL,
    ),
    Rule(
        f"!(has(self.model.adapter) && ({INCOMPLETE.cel} || "
        "(has(self.method.prefixTuning) && self.method.prefixTuning.prefixProjection)))",
        ".model.adapter",
        STARTED_INCOMPLETE,
        lambda spec: (
            spec.model.adapter is not None
            and (spec.method in INCOMPLETE or getattr(spec.method.config, "prefix_projection", False))
        ),
    ),
    Rule(
        f"!(has(self.model.adapter) && ({BASE_CHANGING}))",
        ".model.adapter",
        STARTED_WITH_INIT,
        lambda spec: spec.model.adapter is not None and spec.method.config.changes_base,
    ),
]
