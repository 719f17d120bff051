"""What the processes of a training say to one another beside their gradients: they meet, agree on stopping, and share what one of them knows.

Each of these is a call that all of them make, in the same order. For a training of one process they say nothing to anybody.
"""

import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune_api.reasons import Reason
from finetune_trainer.models import device
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.process import Process, library_variables

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: for a node that is still pending, or for a checkpoint that one of them fetches. One that has died is noticed at once."""
PREPARED = "prepared"
"""A file by which the first process of a node says that the others need not wait for it any longer."""
MEETING = "meeting"
"""The file in which the processes of one node meet."""


def init(process: Process, scratch: Path) -> None:
    """Wait for all the others, and take the GPU that is this process's. Raises Failure(NCCL_ERROR), and Failure(SPEC_INVALID) for more processes than GPUs."""
    if process.local_rank:
        while not (scratch / PREPARED).exists():  # however long the first one takes for the data
            time.sleep(0.1)
    else:
        (scratch / PREPARED).touch()
    if dist.is_initialized():
        dist.destroy_process_group()  # of an earlier attempt in this process, whose others are gone
    if process.world_size == 1:
        return
    os.environ.update(library_variables(process))
    backend = "gloo"
    if device.has_gpu():
        if torch.cuda.device_count() < process.local_world_size:
            raise Failure(
                Reason.SPEC_INVALID,
                f"{process.local_world_size} GPUs are asked for, found: {torch.cuda.device_count()}. Set it to what the machine has",
                "spec.resources.gpusPerNode",
            )
        torch.cuda.set_device(process.local_rank)
        # NCCL between the GPUs; gloo for the few words between the processes, which then wait for no GPU
        backend = "cpu:gloo,cuda:nccl"
    if process.address is None and "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a workstation's name may lead nowhere
    place = f"tcp://{process.address}" if process.address else f"file://{scratch / MEETING}"
    log.info("waiting for the other processes, %d in all", process.world_size)
    try:
        dist.init_process_group(
            backend, init_method=place, rank=process.rank, world_size=process.world_size, timeout=PATIENCE
        )
        dist.barrier()
    except (RuntimeError, ValueError, OSError) as error:
        raise Failure(
            Reason.NCCL_ERROR, f"the {process.world_size} processes of the training did not come together: {error}"
        ) from error


def shutdown() -> None:
    """The end of what is done together: from here on a process that ends fails no other."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        for name in library_variables(Process(world_size=2)):
            os.environ.pop(name, None)


def any_rank(wish: bool) -> bool:
    """Whether any of them wishes it."""
    if not dist.is_initialized():
        return wish
    wishes = torch.tensor([int(wish)])
    dist.all_reduce(wishes, dist.ReduceOp.MAX)
    return bool(wishes.item())


def broadcast(value: Any) -> Any:
    """What the process of rank 0 holds."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: Any) -> list[Any]:
    """What each of them holds, by rank; only the process of rank 0 hears it, the others get nothing."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(value, values if dist.get_rank() == 0 else None, dst=0)
    return values if dist.get_rank() == 0 else []
