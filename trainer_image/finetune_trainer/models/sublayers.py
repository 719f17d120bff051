"""The linear layers with which attention and the feed-forward network end, told from their names: behind these go bottleneck adapters. Knows no torch."""

from collections.abc import Iterable

from finetune_api.methods import Bottleneck

UNKNOWN_SUBLAYERS = "the sublayers of a model of type {!r} are not known to the bottleneck adapter: use lora"
_FEED_FORWARD = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out", "fc2")
_ATTENTION = (
    "self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attn.c_proj", "attn.out_proj", "attention.out_proj", "self_attention.dense",
    "attention.dense",
)  # fmt: skip


def find_sublayers(modules: Iterable[str], block: Bottleneck) -> list[str]:
    """The modules that get an adapter behind them; none for an architecture that is not known."""
    endings = _FEED_FORWARD + (_ATTENTION if block.placement == "houlsby" else ())
    return [name for name in modules if name.endswith(tuple(f".{ending}" for ending in endings))]
