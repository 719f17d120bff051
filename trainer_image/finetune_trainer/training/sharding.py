"""A base that fits no single GPU: each process holds a part of every layer, and has the others' parts for as long as the layer runs.

What is trained stays whole in each process, as without sharding: it is small, and so are its gradients. So checkpoints, and with them resuming, are the same.
"""

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from finetune_trainer.checkpoints import exact_resume
from finetune_trainer.models.device import has_gpu


def shard_base(model: Any, processes: int) -> None:
    """Move the model to this process's GPU, part by part, with FSDP2. Every process calls it, with the same model in main memory."""
    mesh = init_device_mesh("cuda" if has_gpu() else "cpu", (processes,))
    trained = {weight for weight in model.parameters() if weight.requires_grad}
    for weight in trained:
        weight.data = weight.data.to(mesh.device_type)
    base = model.get_base_model()
    layers = base._no_split_modules or []
    for module in base.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, ignored_params=trained)
    fully_shard(model, mesh=mesh, ignored_params=trained)
    # the gradients of what is trained are averaged by DDP, which must not touch the rest
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)  # type: ignore[no-untyped-call]


def load_trained_weights(fresh: Any, weights: dict[str, torch.Tensor]) -> None:
    """Put what was trained into a fresh adapter on a base that is whole."""
    with torch.no_grad():
        for name, weight in exact_resume.trained_weights(fresh).items():
            weight.copy_(weights[name])


def free_gathered_layers(model: Any) -> None:
    """Give back the others' parts, which an evaluation keeps for a backward pass that does not come: the process that saves would do so by itself, alone."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
