"""Shard a base that is too large for one GPU over the processes, with FSDP2.

Each process holds a part of every layer and gathers the others' parts while the layer runs. The adapter is not
sharded: it is small, and its checkpoints are the same as without sharding.
"""

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from finetune_trainer.checkpoints import exact_resume
from finetune_trainer.models.device import has_gpu


def shard_base(model: Any, processes: int) -> None:
    """Move this process's part of the model to its GPU.

    Args:
        model: The model in main memory, the same in every process; each process calls this.
        processes: Number of processes.
    """
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
    # DDP averages the adapter's gradients, and must ignore the frozen weights
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)  # type: ignore[no-untyped-call]


def load_trained_weights(fresh: Any, weights: dict[str, torch.Tensor]) -> None:
    """Copy the trained weights into a fresh adapter on an unsharded base."""
    with torch.no_grad():
        for name, weight in exact_resume.trained_weights(fresh).items():
            weight.copy_(weights[name])


def free_gathered_layers(model: Any) -> None:
    """Free the gathered parts that an evaluation keeps for a backward pass, which never comes.

    All processes must do this together, before one of them saves a checkpoint.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
