"""Add bottleneck adapters: a small two-layer network after a sublayer, added to its output.

PEFT has none. Houlsby et al. 2019 put one after attention and one after the feed-forward network; Pfeiffer et al. 2020
only the second.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from finetune_api.methods import Bottleneck
from finetune_api.reasons import Reason
from finetune_trainer.models.sublayers import UNKNOWN_SUBLAYERS, find_sublayers
from finetune_trainer.runtime.failures import Failure

CONFIG, WEIGHTS, TYPE = "adapter_config.json", "adapter_model.safetensors", "BOTTLENECK"
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


class BottleneckLayer(torch.nn.Module):
    """Add an adapter's output to that of a sublayer's last layer.

    ``adapter_up`` starts at zero, so that a fresh adapter changes nothing.
    """

    def __init__(self, base_layer: torch.nn.Module, width: int, block: Bottleneck) -> None:
        """Create the adapter for a layer whose output has ``width`` features."""
        super().__init__()
        self.base_layer = base_layer
        bottleneck_size = max(int(width / block.reduction_factor), 1)
        device = next(base_layer.parameters()).device
        self.adapter_down = torch.nn.Linear(width, bottleneck_size, device=device, dtype=torch.float32)
        self.adapter_up = torch.nn.Linear(bottleneck_size, width, device=device, dtype=torch.float32)
        torch.nn.init.zeros_(self.adapter_up.weight)
        torch.nn.init.zeros_(self.adapter_up.bias)
        self.activation = ACTIVATIONS[block.non_linearity]
        # A module, as in PEFT: for objectives that compare likelihoods, TRL turns off modules of this type.
        self.dropout = torch.nn.Dropout(block.dropout)
        self.is_disabled = False

    def forward(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """Add the adapter's correction to the output of the layer."""
        output: torch.Tensor = self.base_layer(*arguments, **keywords)
        if self.is_disabled:
            return output
        # Use the adapter's own dtype: bf16 layers have an adapter in fp32.
        hidden = self.dropout(output.to(self.adapter_down.weight.dtype))
        correction: torch.Tensor = self.adapter_up(self.activation(self.adapter_down(hidden)))
        return output + correction.to(output.dtype)


def add_bottleneck(model: Any, block: Bottleneck) -> Any:
    """Add fresh adapters to the model, and freeze everything else.

    Raises:
        Failure: MODEL_UNSUPPORTED if the sublayers of the architecture are not known.
    """
    model.requires_grad_(False)
    chosen = find_sublayers([name for name, _ in model.named_modules()], block)
    if not chosen:
        raise Failure(
            Reason.MODEL_UNSUPPORTED, UNKNOWN_SUBLAYERS.format(model.config.model_type), "spec.method.bottleneck"
        )
    for name in chosen:
        parent, _, last = name.rpartition(".")
        parent_module = model.get_submodule(parent)
        setattr(parent_module, last, BottleneckLayer(getattr(parent_module, last), model.config.hidden_size, block))
    model.bottleneck = block
    return model


def has_bottleneck(model: Any) -> bool:
    """Return whether the model has bottleneck adapters."""
    return any(isinstance(module, BottleneckLayer) for module in model.modules())


@contextmanager
def disable_adapters(model: Any) -> Iterator[None]:
    """Turn the adapters off within this block."""
    layers = [module for module in model.modules() if isinstance(module, BottleneckLayer)]
    for layer in layers:
        layer.is_disabled = True
    try:
        yield
    finally:
        for layer in layers:
            layer.is_disabled = False


def adapter_state_dict(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of the adapters, by their names in the model."""
    return {name: value for name, value in model.state_dict().items() if ".adapter_" in name}


def save(model: Any, directory: Path) -> None:
    """Write the adapters as ``adapter_model.safetensors`` and ``adapter_config.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in adapter_state_dict(model).items()},
        directory / WEIGHTS,
    )
    config = {"peft_type": TYPE, **model.bottleneck.to_json()}
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load(base: Any, directory: Path) -> Any:
    """Add the adapters that ``save`` wrote to a base.

    Raises:
        Failure: VERIFICATION_FAILED if the weights belong to another model.
    """
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    fields = {"placement", "reductionFactor", "nonLinearity", "dropout"}
    model = add_bottleneck(
        base, Bottleneck.model_validate({key: value for key, value in config.items() if key in fields})
    )
    saved = load_file(directory / WEIGHTS)
    missing, unexpected = model.load_state_dict(saved, strict=False)
    if unexpected or [name for name in missing if ".adapter_" in name]:
        raise Failure(
            Reason.VERIFICATION_FAILED, f"{directory / WEIGHTS} belongs to another model: {unexpected or missing}"
        )
    return model.eval()
