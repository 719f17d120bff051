"""Compute on a GPU with a model that does not fit into it: each layer is copied there when it runs.

The model stays in main memory. This is far faster than computing on the CPU.
"""

from typing import Any

import torch
from accelerate import cpu_offload  # type: ignore[import-untyped]
from accelerate.hooks import remove_hook_from_submodules  # type: ignore[import-untyped]

from finetune_trainer.models import device


def stream_layers(model: Any) -> Any:
    """Let a model in main memory compute on the GPU from now on; without a GPU it stays on the CPU."""
    target = torch.device("cuda", torch.cuda.current_device()) if device.has_gpu() else torch.device("cpu")
    return cpu_offload(model, execution_device=target)


def stop_streaming(model: Any) -> Any:
    """Move a model back to main memory, so that its layers can be changed."""
    remove_hook_from_submodules(model)
    return model


def input_device(model: Any) -> torch.device:
    """Return the device for a model's inputs. The weights of streamed layers are on the device ``meta``."""
    hook = getattr(model, "_hf_hook", None)
    device: torch.device = hook.execution_device if hook is not None and model.device.type == "meta" else model.device
    return device
