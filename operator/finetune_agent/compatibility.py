"""Check from an adapter's files whether the engine can serve it, before the engine is asked.

Each problem is one message with its remedy. An engine answers the same problems with a status of 500, in its own words,
or not at all. This module must know no particular engine.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.manifest import GOLDEN_NAME, GoldenSamples
from finetune_api.reasons import Reason
from finetune_artifacts.safetensors import Tensor, find_bad_numbers, read_file_header
from finetune_engines.base import Engine, EngineVersion

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_PROBLEMS = 5
"""Maximum number of problems of one file in a message."""


class IncompatibleError(Exception):
    """The engine cannot serve the adapter.

    Attributes:
        reason: RankTooHigh or AdapterUnsupported.
        message: What is wrong, and what to do.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep the reason and the message."""
        super().__init__(message)
        self.reason = reason
        self.message = message


def check_adapter(directory: Path, engine: Engine, max_rank: int | None) -> GoldenSamples:
    """Check the downloaded adapter or merged model in ``directory``, and return its golden samples.

    Args:
        directory: Directory of the adapter, as PEFT saves it, or of the merged model.
        engine: The engine that is to serve it.
        max_rank: Highest rank that the running engine accepts; None if it is not known.

    Raises:
        IncompatibleError: If the engine cannot serve the adapter.
    """
    if engine.serves_merged:
        return read_golden_samples(directory)
    config = _read_config(directory / CONFIG_NAME)
    if problems := engine.find_unsupported(config):
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED, f"{engine.title} cannot serve this adapter: {'; '.join(problems)}"
        )
    rank = highest_rank(config)
    if max_rank is not None and rank > max_rank:
        raise IncompatibleError(
            Reason.RANK_TOO_HIGH,
            f"the adapter's rank is {rank}, the engine's maximum ({engine.max_rank_argument}) is {max_rank}: "
            f"{engine.rank_remedy(rank, max_rank)}",
        )
    tensors = _read_tensors(directory / WEIGHTS_NAME)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    problems = find_tensor_problems(shapes, rank, engine.ignored_tensors)
    problems += find_bad_numbers(directory / WEIGHTS_NAME, tensors)[:MAX_PROBLEMS]
    if problems:
        raise IncompatibleError(Reason.ADAPTER_UNSUPPORTED, f"{WEIGHTS_NAME}: {'; '.join(problems)}")
    return read_golden_samples(directory)


def check_version(directory: Path, engine: EngineVersion) -> None:
    """Check whether the running version of the engine serves the adapter in ``directory`` correctly.

    Raises:
        IncompatibleError: If it does not.
    """
    if problems := engine.find_misserved(_read_config(directory / CONFIG_NAME)):
        raise IncompatibleError(Reason.ADAPTER_UNSUPPORTED, f"the engine would serve it wrongly: {'; '.join(problems)}")


def read_golden_samples(directory: Path) -> GoldenSamples:
    """Read the golden samples of the adapter or merged model. Raises IncompatibleError if they cannot be used."""
    path = directory / GOLDEN_NAME
    try:
        golden = GoldenSamples.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED,
            f"there is no {GOLDEN_NAME}, and without it no pod can prove the answers: train the adapter (or the merged "
            "model) with a FineTuneJob",
        ) from error
    except ValidationError as error:
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED, f"{GOLDEN_NAME} cannot be read: {error.errors(include_url=False)[0]['msg']}"
        ) from error
    for number, sample in enumerate(golden.samples):
        if not len(sample.base_logprobs) == len(sample.adapter_logprobs) == len(sample.token_ids) - 1:
            raise IncompatibleError(
                Reason.ADAPTER_UNSUPPORTED,
                f"{GOLDEN_NAME}: samples[{number}] has {len(sample.token_ids)} tokens, so it needs "
                f"{len(sample.token_ids) - 1} log-probabilities of base and adapter each "
                f"(found {len(sample.base_logprobs)} and {len(sample.adapter_logprobs)})",
            )
        if not all(map(math.isfinite, [*sample.base_logprobs, *sample.adapter_logprobs])):
            raise IncompatibleError(
                Reason.ADAPTER_UNSUPPORTED,
                f"{GOLDEN_NAME}: samples[{number}] has log-probabilities that are infinite or not a number (NaN)",
            )
    return golden


def highest_rank(config: Mapping[str, Any]) -> int:
    """Return the largest rank of any module. Raises IncompatibleError if a rank is not a positive integer."""
    values = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    ranks = [rank for rank in values if isinstance(rank, int) and rank > 0]
    if ranks != values:
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED, f"{CONFIG_NAME}: r and rank_pattern must be positive integers (found {values})"
        )
    return max(ranks)


def find_tensor_problems(shapes: Mapping[str, list[int]], rank: int, ignored: tuple[str, ...] = ()) -> list[str]:
    """Return why the tensors are not a plain LoRA: unknown names, a missing factor, wrong shapes.

    Args:
        shapes: Shape of each tensor in the file, by its name.
        rank: Highest rank that a module may have.
        ignored: Endings of the names that the engine skips.
    """
    problems = []
    modules: dict[str, dict[str, list[int]]] = {}
    for name, shape in sorted(shapes.items()):
        if ignored and name.endswith(ignored):
            continue
        module, factor = _split_name(name)
        if factor is None:
            problems.append(f"tensor {name} does not belong to a plain LoRA")
        else:
            modules.setdefault(module, {})[factor] = shape
    for module, factors in modules.items():
        if len(factors) != 2:
            problems.append(f"{module} has only lora_{next(iter(factors))}")
            continue
        rank_a, rank_b = _size_of_axis(factors["A"], 0), _size_of_axis(factors["B"], 1)
        if rank_a is None or rank_a != rank_b or rank_a > rank:
            problems.append(
                f"{module}: lora_A {factors['A']} and lora_B {factors['B']} do not share a rank of at most {rank}"
            )
    if not shapes:
        problems.append("it has no tensors")
    return problems[:MAX_PROBLEMS]


def _split_name(name: str) -> tuple[str, str | None]:
    """Return the module of a tensor, and which factor of it the tensor is: A, B or None."""
    for ending, factor in (
        (".lora_A.weight", "A"),
        (".lora_B.weight", "B"),
        (".lora_embedding_A", "A"),
        (".lora_embedding_B", "B"),
    ):
        if name.endswith(ending):
            return name.removesuffix(ending), factor
    return name, None


def _size_of_axis(shape: list[int], axis: int) -> int | None:
    return shape[axis] if len(shape) >= 2 else None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED,
            f"{CONFIG_NAME} cannot be read ({type(error).__name__}): save the adapter with PEFT",
        ) from error
    if not isinstance(config, dict):
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED, f"{CONFIG_NAME} is not a JSON object: save the adapter with PEFT"
        )
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the header of a safetensors file."""
    try:
        return read_file_header(path)
    except FileNotFoundError as error:
        raise IncompatibleError(
            Reason.ADAPTER_UNSUPPORTED,
            f"the adapter has no {WEIGHTS_NAME}: safetensors is the only format that is served",
        ) from error
    except (OSError, ValueError) as error:
        raise IncompatibleError(Reason.ADAPTER_UNSUPPORTED, f"{WEIGHTS_NAME}: {error}") from error
