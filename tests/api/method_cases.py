"""Wrong methods and hyperparameters, and combinations of them."""

from finetune_api.combinations.method import (
    MERGED_FULL,
    MERGED_PROMPT,
    PACKED_PROMPT,
    RECOMPUTED_PREFIX,
    STARTED_INCOMPLETE,
    STARTED_WITH_INIT,
)
from finetune_api.methods.adalora import RANKS_FALL
from finetune_api.methods.lora import EVEN_RANK, PLAIN_LORA_ONLY
from finetune_api.methods.lycoris import FACTOR_NOT_ZERO
from finetune_api.methods.method import ONE_METHOD
from finetune_api.methods.prompts import TEXT_WITH_ITS_INIT, WIDTH_NEEDS_PROJECTION
from tests.api.case import STARTED, of_job
from tests.api.objects import REMOVE

BOTH_LENGTHS = "epochs and maxSteps are both set: remove one of them"

METHOD_CASES = [
    of_job("unknown field", {"spec.method.lora.ranks": 8}, "spec.method.lora.ranks", "unknown field"),
    of_job(
        "wrong enum",
        {"spec.training.precision": "int8"},
        "spec.training.precision",
        'supported values: "auto", "bf16", "fp16", "fp32"',
        "'auto', 'bf16', 'fp16' or 'fp32'",
    ),
    of_job("rank 0", {"spec.method.lora.rank": 0}, "spec.method.lora.rank", "greater than or equal to 1"),
    of_job("rank too high", {"spec.method.lora.rank": 513}, "spec.method.lora.rank", "less than or equal to 512"),
    of_job(
        "dropout of one",
        {"spec.method.lora.dropout": 1.0},
        "spec.method.lora.dropout",
        "should be less than 1",
        "less than 1",
    ),
    of_job(
        "a seed of 33 bits", {"spec.training.seed": 2**32}, "spec.training.seed", "less than or equal to 4294967295"
    ),
    of_job(
        "a length beyond 32 bits",
        {"spec.training.maxLength": 2**31},
        "spec.training.maxLength",
        "less than or equal to 2147483647",
    ),
    of_job("epochs and maxSteps", {"spec.training.epochs": 1}, "spec.training", BOTH_LENGTHS),
    of_job("two methods", {"spec.method.qlora": {}}, "spec.method", ONE_METHOD),
    of_job(
        "an odd rank for orthogonal matrices",
        {"spec.method": {"lora": {"rank": 5, "init": "orthogonal"}}},
        "spec.method.lora",
        EVEN_RANK,
    ),
    of_job(
        "loftq without a quantised base",
        {"spec.method.lora.init": "loftq"},
        "spec.method.lora.init",
        "supported values",
        "'default', 'gaussian'",
    ),
    of_job("a rank that rises", {"spec.method": {"adalora": {"initRank": 4}}}, "spec.method.adalora", RANKS_FALL),
    of_job("no factor", {"spec.method": {"lokr": {"decomposeFactor": 0}}}, "spec.method.lokr", FACTOR_NOT_ZERO),
    of_job(
        "a network that is not used",
        {"spec.method": {"prefixTuning": {"encoderHiddenSize": 8}}},
        "spec.method.prefixTuning",
        WIDTH_NEEDS_PROJECTION,
    ),
    of_job(
        "a text that is not used",
        {"spec.method": {"promptTuning": {"promptTuningInitText": "Hello"}}},
        "spec.method.promptTuning",
        TEXT_WITH_ITS_INIT,
    ),
    of_job(
        "no text to begin with",
        {"spec.method": {"promptTuning": {"promptTuningInit": "text"}}},
        "spec.method.promptTuning",
        TEXT_WITH_ITS_INIT,
    ),
    of_job("packed prompts", {"spec.method": {"pTuning": {}}, "spec.training.packing": True}, "spec", PACKED_PROMPT),
    of_job(
        "packed prompts by PEFT's name",
        {"spec.method": {"peft": {"type": "P_TUNING"}}, "spec.training.packing": True},
        "spec",
        PACKED_PROMPT,
    ),
    of_job(
        "a prefix that is computed twice",
        {"spec.method": {"prefixTuning": {}}, "spec.training.gradientCheckpointing": "always"},
        "spec",
        RECOMPUTED_PREFIX,
    ),
    of_job(
        "a merged prompt", {"spec.method": {"promptTuning": {}}, "spec.output.mergedModel": True}, "spec", MERGED_PROMPT
    ),
    of_job("a merged model", {"spec.method": {"full": {}}, "spec.output.mergedModel": True}, "spec", MERGED_FULL),
    of_job(
        "an adapter to train whole",
        {"spec.method": {"full": {}}, "spec.model.adapter": STARTED},
        "spec",
        STARTED_INCOMPLETE,
    ),
    of_job(
        "two beginnings",
        {"spec.method": {"lora": {"init": "pissa"}}, "spec.model.adapter": STARTED},
        "spec",
        STARTED_WITH_INIT,
    ),
    of_job(
        "a beginning beside trained modules",
        {"spec.method": {"lora": {"init": "olora", "modulesToSave": ["lm_head"]}}},
        "spec.method.lora",
        PLAIN_LORA_ONLY,
    ),
    of_job("no method in the choice", {"spec.method.lora": REMOVE}, "spec.method", ONE_METHOD),
]
