"""Define the rules between the objective and the dataset, the method, the training and the output."""

from finetune_api.combinations.method import BASE_CHANGING, PREFIX, PROMPT
from finetune_api.combinations.rule import Rule, methods_where

SINGLE_ADAPTER = methods_where(lambda block: not block.supports_reference_copy, peft_types=())
REWARD = methods_where(lambda block: block.supports_reward)
PAIRED = ("dpo", "orpo", "reward")
"""Objectives whose rows are pairs of a better and a worse answer."""

NO_PREFERENCE = "preference belongs to the objectives dpo, kto and orpo: remove it, or set one of them"
NO_PACKING = "packing is for objective sft only: set training.packing to false"
KTO_BATCH = "objective kto compares the rows of a batch: set training.perDeviceBatchSize to 2 or more"
PAIRS = (
    "objectives dpo, orpo and reward learn from pairs: set dataset.format to preference or auto, and remove "
    "dataset.template"
)
NO_PAIRS = "dataset.format preference is for the objectives dpo, orpo and reward: set one of them"
LABELS = "objective kto learns from prompts, completions and labels: set dataset.format to promptCompletion or auto"
ONE_ADAPTER = (
    "objectives dpo and kto keep a frozen copy of the adapter, which is impossible with adalora (PEFT allows one "
    "adapter only) and with init pissa, olora and loftq (they change the base): choose another method or init, or "
    "objective orpo"
)
NO_PROMPTS = (
    "TRL does not support objective orpo with promptTuning and pTuning: choose another method, or objective dpo"
)
SCORES = "objective reward trains a head in addition to the adapter: choose method lora, qlora or dora"
NO_MERGED_SCORES = (
    "mergedModel cannot be combined with objective reward, whose head the base does not have: set mergedModel to false"
)

RULES = [
    Rule(
        "!has(self.preference) || self.objective in ['dpo', 'kto', 'orpo']",
        ".preference",
        NO_PREFERENCE,
        lambda spec: spec.preference is not None and spec.objective in ("sft", "reward"),
    ),
    Rule(
        "self.objective == 'sft' || !has(self.training.packing) || !self.training.packing",
        ".training.packing",
        NO_PACKING,
        lambda spec: spec.objective != "sft" and spec.training.packs,
    ),
    Rule(
        "self.objective != 'kto' || (has(self.training.perDeviceBatchSize) ? self.training.perDeviceBatchSize > 1 : "
        "self.resources.gpusPerNode > 0 && !has(self.training.gradientAccumulationSteps))",
        ".training.perDeviceBatchSize",
        KTO_BATCH,
        lambda spec: (
            spec.objective == "kto"
            and spec.training.batch_size < 2
            and not (spec.training.leaves_batch_open and spec.resources.gpus_per_node)
        ),
    ),
    Rule(
        f"!(self.objective in {list(PAIRED)}) || "
        "(self.dataset.format in ['auto', 'preference'] && !has(self.dataset.template))",
        ".dataset.format",
        PAIRS,
        lambda spec: (
            spec.objective in PAIRED
            and (spec.dataset.format not in ("auto", "preference") or spec.dataset.template is not None)
        ),
    ),
    Rule(
        f"self.dataset.format != 'preference' || self.objective in {list(PAIRED)}",
        ".dataset.format",
        NO_PAIRS,
        lambda spec: spec.dataset.format == "preference" and spec.objective not in PAIRED,
    ),
    Rule(
        "self.objective != 'kto' || self.dataset.format in ['auto', 'promptCompletion', 'preference']",
        ".dataset.format",
        LABELS,
        lambda spec: spec.objective == "kto" and spec.dataset.format not in ("auto", "promptCompletion", "preference"),
    ),
    Rule(
        f"!(self.objective in ['dpo', 'kto']) || !({SINGLE_ADAPTER.cel} || {BASE_CHANGING})",
        ".objective",
        ONE_ADAPTER,
        lambda spec: (
            spec.objective in ("dpo", "kto") and (spec.method in SINGLE_ADAPTER or spec.method.config.changes_base)
        ),
    ),
    Rule(
        f"self.objective != 'orpo' || !{PROMPT.cel} || {PREFIX.cel}",
        ".objective",
        NO_PROMPTS,
        lambda spec: spec.objective == "orpo" and spec.method in PROMPT and spec.method not in PREFIX,
    ),
    Rule(
        f"self.objective != 'reward' || {REWARD.cel}",
        ".objective",
        SCORES,
        lambda spec: spec.objective == "reward" and spec.method not in REWARD,
    ),
    Rule(
        "!(self.objective == 'reward' && self.output.mergedModel)",
        ".output.mergedModel",
        NO_MERGED_SCORES,
        lambda spec: spec.objective == "reward" and spec.output.merged_model,
    ),
]
