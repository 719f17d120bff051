"""Combine several LoRAs of one base into one, by PEFT's ``add_weighted_adapter``."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure

COMBINATIONS = (
    "linear",
    "cat",
    "svd",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_ties",
    "dare_linear_svd",
    "dare_ties_svd",
)
"""Values of PEFT's ``combination_type``.

``cat`` is exact and adds the ranks. ``svd`` is the nearest adapter of the largest rank. ``linear`` mixes the A and the
B matrices separately, which is only an approximation. TIES (Yadav et al. 2023) and DARE (Yu et al. 2024) drop a part
of each update, so that the updates disturb each other less.
"""


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter's directory and its weight."""

    directory: Path
    weight: float = 1.0


def combine(
    base: Path, parts: Sequence[WeightedAdapter], *, combination: str, directory: Path, density: float, seed: int
) -> int:
    """Write the combined adapter and return its rank.

    Args:
        base: Directory of the base model.
        parts: The adapters and their weights.
        combination: One of ``COMBINATIONS``.
        directory: Receives the combined adapter.
        density: Share of each update that TIES and DARE keep.
        seed: Seed of DARE's random choice.

    Raises:
        Failure: SPEC_INVALID for adapters that cannot be combined.
    """
    import torch
    from peft import PeftModel

    from finetune_trainer.methods import conversion
    from finetune_trainer.models import loading

    configs = [_read_config(part.directory) for part in parts]
    names = {str(config["base_model_name_or_path"]) for config in configs}
    if len(names) != 1:
        raise _refusal(f"they are of {len(names)} base models: {', '.join(sorted(names))}")
    # PEFT would confuse an adapter whose name is a number with the layer of that number
    adapters, weights = [f"adapter{number}" for number in range(len(parts))], [part.weight for part in parts]
    torch.manual_seed(seed)
    base_model = loading.load_base(base, torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        plain = [Path(scratch, name) for name in adapters]
        for part, path in zip(parts, plain, strict=True):
            # the scale becomes part of the weights, so that different alphas do not matter
            tuned = PeftModel.from_pretrained(base_model, str(part.directory))
            modules = [name for name, _ in tuned.get_base_model().named_modules()]
            conversion.write_lora(conversion.lora_factors(tuned), modules, path)
            base_model = tuned.unload()
        tuned = PeftModel.from_pretrained(base_model, str(plain[0]), adapter_name=adapters[0])
        for name, path in zip(adapters[1:], plain[1:], strict=True):
            tuned.load_adapter(str(path), adapter_name=name)
    options = {"density": density} if combination.startswith(("ties", "dare")) else {}
    try:
        tuned.add_weighted_adapter(adapters, weights, "combined", combination_type=combination, **options)
    except ValueError as error:
        raise _refusal(str(error)) from error
    tuned.set_adapter("combined")
    tuned.save_pretrained(str(directory), selected_adapters=["combined"], safe_serialization=True)
    for path in (directory / "combined").iterdir():
        path.rename(directory / path.name)
    (directory / "combined").rmdir()
    (directory / "README.md").unlink(missing_ok=True)
    conversion.set_base_name(directory, names.pop(), configs[0].get("revision"))
    rank: int = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    return rank


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "adapter_config.json"
    if not path.is_file():
        raise _refusal(f"{directory} has no adapter_config.json: give the directory of an adapter")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    plain = config["peft_type"] == "LORA" and not config.get("use_dora") and not config.get("modules_to_save")
    if not plain or config.get("bias", "none") != "none":
        raise _refusal(f"{directory} is not a plain LoRA (type {config['peft_type']}): merge it into the base instead")
    return config


def _refusal(cause: str) -> Failure:
    return Failure(Reason.SPEC_INVALID, f"the adapters cannot be combined: {cause}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Combine the adapters that the arguments name, and return the exit code: 1 if they cannot be combined."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.combine", description=__doc__)
    parser.add_argument(
        "adapter", nargs="+", help="directory of an adapter; DIRECTORY=WEIGHT for a weight other than 1"
    )
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--combination", choices=COMBINATIONS, default="cat", help="how (default: cat, which is exact)")
    parser.add_argument(
        "--density", type=float, default=0.5, help="share of each update that TIES and DARE keep (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of DARE's random choice (default: 0)")
    parser.add_argument("--output", type=Path, required=True, help="directory of the combined adapter")
    options = parser.parse_args(arguments)
    try:
        parts = [parse_adapter(text) for text in options.adapter]
        rank = combine(
            options.base,
            parts,
            combination=options.combination,
            directory=options.output,
            density=options.density,
            seed=options.seed,
        )
    except Failure as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(f"{options.output}: {len(parts)} adapters combined into one of rank {rank}\n")
    return 0


def parse_adapter(text: str) -> WeightedAdapter:
    """Parse ``DIRECTORY`` or ``DIRECTORY=WEIGHT``. Raises ``Failure`` with SPEC_INVALID."""
    directory, equals, weight = text.rpartition("=")
    if not equals:
        return WeightedAdapter(Path(text))
    try:
        return WeightedAdapter(Path(directory), float(weight))
    except ValueError as error:
        raise _refusal(f"{text!r} must be DIRECTORY or DIRECTORY=WEIGHT, where the weight is a number") from error


if __name__ == "__main__":
    sys.exit(main())
