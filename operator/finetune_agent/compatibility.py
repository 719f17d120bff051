"""Whether vLLM can serve an adapter at all, found from its files before the engine is asked. One message per problem, with its remedy.

An engine says the same with a 500, in its own words, or not at all.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.manifest import GOLDEN_NAME, GoldenSamples
from finetune_api.reasons import Reason
from finetune_api.vllm import RANKS, features
from finetune_artifacts.safetensors import read_file_header

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_BASE_LAYERS = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
"""PEFT saves these beside an adapter of the embedding; vLLM passes over them."""


class IncompatibleError(Exception):
    """The adapter cannot be served. ``reason`` is RankTooHigh or AdapterUnsupported."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def check_files(directory: Path, max_lora_rank: int | None) -> GoldenSamples:
    """Check the downloaded adapter in ``directory`` and give its golden samples. Raises IncompatibleError.

    ``max_lora_rank`` is the engine's, None where it is not known.
    """
    config = _config(directory / CONFIG_NAME)
    if found := features(config):
        raise IncompatibleError(Reason.ADAPTER_UNSUPPORTED, "vLLM cannot serve this adapter: " + "; ".join(found))
    rank = highest_rank(config)
    if max_lora_rank is not None and rank > max_lora_rank:
        raise IncompatibleError(Reason.RANK_TOO_HIGH, too_high(rank, max_lora_rank))
    if found := tensors(_header(directory / WEIGHTS_NAME), rank):
        raise IncompatibleError(Reason.ADAPTER_UNSUPPORTED, f"{WEIGHTS_NAME}: " + "; ".join(found))
    return read_golden(directory)


def read_golden(directory: Path) -> GoldenSamples:
    """The golden samples of the adapter in ``directory``. Raises IncompatibleError if it has none that can be used."""
    path = directory / GOLDEN_NAME
    try:
        golden = GoldenSamples.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED,
            f"the adapter has no {GOLDEN_NAME}, without which no pod can prove that it answers: train it with a FineTuneJob",
        ) from error
    except ValidationError as error:
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED, f"{GOLDEN_NAME} cannot be read: {error.errors(include_url=False)[0]['msg']}"
        ) from error
    for number, sample in enumerate(golden.samples):
        if not len(sample.base_logprobs) == len(sample.adapter_logprobs) == len(sample.token_ids) - 1:
            raise IncompatibleError(
                Reason.ADAPTER_UNSUPPORTED,
                f"{GOLDEN_NAME}: samples[{number}] has {len(sample.token_ids)} tokens, and so must have {len(sample.token_ids) - 1} log-probabilities of "
                f"base and adapter each (found {len(sample.base_logprobs)} and {len(sample.adapter_logprobs)})",
            )
    return golden


def highest_rank(config: dict[str, Any]) -> int:
    """The largest rank of any module. Raises IncompatibleError if there is none."""
    given = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    ranks = [rank for rank in given if isinstance(rank, int) and rank > 0]
    if ranks != given:
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED, f"{CONFIG_NAME}: r and rank_pattern must be positive integers (found {given})"
        )
    return max(ranks)


def too_high(rank: int, maximum: int) -> str:
    """The message for RankTooHigh, with the value that --max-lora-rank must have."""
    fitting = next((value for value in RANKS if value >= rank), None)
    remedy = (
        f"start vLLM with --max-lora-rank {fitting}, or train with rank {maximum} or less"
        if fitting
        else f"train with rank {maximum} or less"
    )
    return f"the adapter's rank is {rank}, the engine's maximum (--max-lora-rank) is {maximum}: {remedy}"


def tensors(header: dict[str, list[int]], rank: int) -> list[str]:
    """What in the weights cannot be a LoRA of at most this rank: tensor names without meaning, halves without the other, wrong shapes."""
    found = []
    pairs: dict[str, dict[str, list[int]]] = {}
    for name, shape in sorted(header.items()):
        if name.endswith(_BASE_LAYERS):
            continue
        module, half = _half(name)
        if half is None:
            found.append(f"tensor {name} is no part of a plain LoRA")
        else:
            pairs.setdefault(module, {})[half] = shape
    for module, halves in pairs.items():
        if len(halves) != 2:
            found.append(f"{module} has only lora_{next(iter(halves))}")
            continue
        inner_a, inner_b = _inner(halves["A"], 0), _inner(halves["B"], 1)
        if inner_a is None or inner_a != inner_b or inner_a > rank:
            found.append(
                f"{module}: lora_A {halves['A']} and lora_B {halves['B']} do not share a rank of at most {rank}"
            )
    if not header:
        found.append("it has no tensors")
    return found[:5]


def _half(name: str) -> tuple[str, str | None]:
    for ending, half in (
        (".lora_A.weight", "A"),
        (".lora_B.weight", "B"),
        (".lora_embedding_A", "A"),
        (".lora_embedding_B", "B"),
    ):
        if name.endswith(ending):
            return name.removesuffix(ending), half
    return name, None


def _inner(shape: list[int], axis: int) -> int | None:
    return shape[axis] if len(shape) >= 2 else None


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED,
            f"{CONFIG_NAME} cannot be read ({type(error).__name__}): save the adapter with PEFT",
        ) from error
    if not isinstance(config, dict):
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED, f"{CONFIG_NAME} is no JSON object: save the adapter with PEFT"
        )
    return config


def _header(path: Path) -> dict[str, list[int]]:
    """Name and shape of each tensor."""
    try:
        return {name: list(tensor.shape) for name, tensor in read_file_header(path).items()}
    except FileNotFoundError as error:
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED,
            f"the adapter has no {WEIGHTS_NAME}: safetensors is the only format that is served",
        ) from error
    except (OSError, ValueError) as error:
        raise IncompatibleError(Reason.ADAPTER_UNSUPPORTED, f"{WEIGHTS_NAME}: {error}") from error
