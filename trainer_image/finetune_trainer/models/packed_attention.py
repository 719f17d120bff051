"""Compute attention within each example of a packed row, without a mask over the whole batch.

For ``sdpa`` transformers makes a mask whose size grows with the square of the batch. TRL's collator has the examples'
borders, and attention that knows them needs no mask.
"""

from functools import lru_cache, partial
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from finetune_trainer.models import device

NAME = "packed_examples"
"""Name of this attention in transformers' registry."""
BORDERS = "cu_seq_lens_q"
"""TRL's name of the positions at which the examples of a packed batch begin, with the end of the last one."""
LARGEST_HEAD = 256
"""Width of the largest head of the kernels for variable lengths."""


def install(model: Any) -> bool:
    """Let a model that uses ``sdpa`` attend to packed examples one by one; return whether it does so now.

    Rows that are not packed are computed as before, bit for bit.

    Args:
        model: A model of transformers, without an adapter.
    """
    if not _is_suitable(model):
        return False
    AttentionInterface.register(NAME, partial(attend, has_kernel=device.has_flash_attention()))
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        return False
    model.base_model.register_forward_pre_hook(_replace_mask, with_kwargs=True)
    return True


def uninstall(model: Any) -> None:
    """Let the model use ``sdpa`` again."""
    model.set_attn_implementation("sdpa")


def is_installed(model: Any) -> bool:
    """Return whether the model, with an adapter or without, attends to packed examples one by one."""
    return bool(model.config._attn_implementation == NAME)


def describe_borders(lengths: list[int], where: torch.device) -> dict[str, Any]:
    """Return what TRL's collator tells a model of the borders of packed examples.

    Args:
        lengths: The number of tokens of each example.
        where: Device of the result.
    """
    borders = torch.tensor([0, *lengths], device=where).cumsum(0).to(torch.int32)
    return {BORDERS: borders, "cu_seq_lens_k": borders, "max_length_q": max(lengths), "max_length_k": max(lengths)}


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    has_kernel: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention as transformers' ``sdpa`` does, but of packed examples without a mask.

    Args:
        module: The attention layer.
        query: Shape (batch, heads, tokens, width).
        key: Shape (batch, key heads, tokens, width).
        value: Shape (batch, key heads, tokens, width).
        attention_mask: An empty tensor for a packed batch.
        dropout: Share of the attention weights that is dropped.
        scaling: Factor of the scores.
        has_kernel: Whether the GPU has torch's kernels for variable lengths.
        options: The options of transformers' attention; the borders are among them.
    """
    if attention_mask is None or attention_mask.numel():
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    borders, window = options[BORDERS], options.get("sliding_window")
    if torch.is_autocast_enabled(query.device.type):  # autocast casts for sdpa, but not for the kernel
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if has_kernel and not dropout and _fits_kernel(query, value):
        result: Any = varlen_attn(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            borders,
            borders,
            options["max_length_q"],
            options["max_length_q"],
            scale=scaling,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return result[None], None
    # The function reads the lengths into Python, which a compiler cannot follow.
    attend_to_each: Any = torch.compiler.disable(_attend_to_each)  # type: ignore[no-untyped-call]
    return attend_to_each(query, key, value, borders, window, dropout, scaling), None


def _attend_to_each(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    window: int | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Call sdpa for each example."""
    results, start = [], 0
    for length in _list_lengths(borders):
        part, start = slice(start, start + length), start + length
        fits_window = window is None or length <= window
        result = scaled_dot_product_attention(
            query[:, :, part],
            key[:, :, part],
            value[:, :, part],
            attn_mask=None if fits_window else _make_band_mask(length, window or 0, query.device),
            dropout_p=dropout,
            scale=scaling,
            is_causal=fits_window,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        results.append(result)
    return torch.cat(results, dim=2).transpose(1, 2).contiguous()


def _is_suitable(model: Any) -> bool:
    """Return whether the model uses ``sdpa``, and full or sliding attention only."""
    config = model.config.get_text_config()
    kinds = {*(getattr(config, "layer_types", None) or [])}
    return (
        model._supports_attention_backend
        and config._attn_implementation == "sdpa"
        and getattr(config, "attention_chunk_size", None) is None
        and kinds <= {"full_attention", "sliding_attention"}
    )


def _replace_mask(backbone: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Put an empty mask into the call of a packed batch: transformers then makes none."""
    packed = options.get(BORDERS) is not None and options.get("attention_mask") is None
    if packed and is_installed(backbone):
        options["attention_mask"] = torch.empty(1, 1, 1, 0, device=options[BORDERS].device)
    return arguments, options


def _fits_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether torch's attention for variable lengths supports the dtypes and widths of these tensors."""
    sixteen_bits = query.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and sixteen_bits and query.shape[-1] == value.shape[-1] <= LARGEST_HEAD


@lru_cache(maxsize=1)
def _list_lengths(borders: torch.Tensor) -> list[int]:
    """Return the number of tokens of each example; all layers of a pass share one copy to main memory."""
    return borders.diff().tolist()


def _make_band_mask(length: int, window: int, where: torch.device) -> torch.Tensor:
    """Return the (length, length) mask of sliding attention: each token sees itself and ``window - 1`` before it."""
    ones = torch.ones(length, length, dtype=torch.bool, device=where)
    return ones.tril() & ones.triu(1 - window)
