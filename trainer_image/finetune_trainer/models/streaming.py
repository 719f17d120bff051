"""Compute on a GPU with a model that does not fit into it: each layer is copied there when it runs.

The model stays in main memory. That is far faster than to compute there.
"""

from typing import Any

import torch
from accelerate import cpu_offload  # type: ignore[import-untyped]
from accelerate.hooks import remove_hook_from_submodules  # type: ignore[import-untyped]

from finetune_trainer.models import device


def stream_layers(model: Any) -> Any:
    """Let a model in main memory compute on the GPU from now on; without one nothing moves."""
    where = torch.device("cuda", torch.cuda.current_device()) if device.has_gpu() else torch.device("cpu")
    return cpu_offload(model, execution_device=where)


def stop_streaming(model: Any) -> Any:
    """Bring a model back into main memory, whose layers can be changed then."""
    remove_hook_from_submodules(model)
    return model


def input_device(model: Any) -> torch.device:
    """Return the device on which a model takes its inputs. The weights of streamed layers seem to be nowhere."""
    hook = getattr(model, "_hf_hook", None)
    found: torch.device = hook.execution_device if hook is not None and model.device.type == "meta" else model.device
    return found
