"""Find by name, without torch, the last linear layers of attention and feed-forward, for bottleneck adapters."""

from collections.abc import Iterable

from finetune_api.methods import Bottleneck

UNKNOWN_SUBLAYERS = "the sublayers of a model of type {!r} are not known to the bottleneck adapter: use lora"
_FEED_FORWARD = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out", "fc2")
_ATTENTION = (
    "self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attn.c_proj", "attn.out_proj", "attention.out_proj",
    "self_attention.dense", "attention.dense",
)  # fmt: skip


def find_sublayers(modules: Iterable[str], block: Bottleneck) -> list[str]:
    """List the modules that get a bottleneck adapter; none if they are not known in every layer."""
    names = list(modules)
    feed_forward, attention = (
        [name for name in names if name.endswith(tuple(f".{ending}" for ending in endings))]
        for endings in (_FEED_FORWARD, _ATTENTION)
    )
    if len(feed_forward) != len(attention):
        return []  # layers with experts, for example
    return [name for name in names if name in feed_forward or (block.placement == "houlsby" and name in attention)]
