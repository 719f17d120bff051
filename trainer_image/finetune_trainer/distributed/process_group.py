"""Exchange values other than gradients between the processes of a training, by torch.distributed.

Each function is a collective call: all processes make it, in the same order. In a training of one process it does
nothing.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from finetune_api.reasons import Reason
from finetune_trainer.models import device
from finetune_trainer.runtime.background import start_thread
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.process import Process, library_variables

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: for a pending node, or for one that fetches a checkpoint.

A process that has died is noticed at once.
"""
PREPARED_FILE = "prepared"
"""The file by which the first process of a node tells the others that the data is prepared."""
RENDEZVOUS_FILE = "meeting"
"""The file by which the processes of one node find each other."""
EVALUATION_RENDEZVOUS_FILE = "evaluation-meeting"
"""The file by which they find each other again after the training."""


@contextmanager
def main_process_first(process: Process, scratch: Path) -> Iterator[None]:
    """Run the block in the first process of each node before it runs in the node's other processes.

    All processes join the group, so that after the block they can make collective calls.
    """
    if process.local_rank:
        init(process, scratch)
    yield
    if not process.local_rank:
        init(process, scratch)


def init(process: Process, scratch: Path) -> None:
    """Wait for all other processes, join their group, and take this process's GPU.

    Raises:
        Failure: NCCL_ERROR if the group cannot be formed, SPEC_INVALID for more processes than GPUs.
    """
    if process.local_rank:
        while not (scratch / PREPARED_FILE).exists():  # however long the first process takes for the data
            time.sleep(0.1)
    else:
        (scratch / PREPARED_FILE).touch()
    if dist.is_initialized():
        dist.destroy_process_group()  # of an earlier attempt in this process, whose other processes are gone
    if process.world_size == 1:
        return
    os.environ.update(library_variables(process))
    backend = "gloo"
    if device.has_gpu():
        gpus = torch.cuda.device_count()
        if gpus < process.local_world_size:
            raise Failure(
                Reason.SPEC_INVALID,
                f"{process.local_world_size} GPUs are asked for, found: {gpus}. Set it to what the machine has",
                "spec.resources.gpusPerNode",
            )
        torch.cuda.set_device(process.local_rank)
        # NCCL between the GPUs; gloo for other values, so that they do not wait for a GPU
        backend = "cpu:gloo,cuda:nccl"
    log.info("waiting for the other processes, %d in all", process.world_size)
    _form_group(process, backend, scratch / RENDEZVOUS_FILE)


@contextmanager
def evaluation_group(process: Process, scratch: Path) -> Iterator[None]:
    """Join the processes of a training again, which have left its group, for the length of the block.

    This group takes no memory of a GPU. A process that fails in the block leaves at once; then the others' calls fail.

    Raises:
        Failure: NCCL_ERROR if the group cannot be formed.
    """
    _wait_for(partial(_form_group, process, "cpu:gloo", scratch / EVALUATION_RENDEZVOUS_FILE))
    try:
        yield
        _wait_for(dist.barrier)
    finally:
        dist.destroy_process_group()


def _form_group(process: Process, backend: str, rendezvous_file: Path) -> None:
    """Wait for all other processes, and join their group. Raises Failure: NCCL_ERROR."""
    if process.address is None and "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a workstation's host name may not resolve
    init_method = f"tcp://{process.address}" if process.address else f"file://{rendezvous_file}"
    try:
        dist.init_process_group(
            backend, init_method=init_method, rank=process.rank, world_size=process.world_size, timeout=TIMEOUT
        )
        dist.barrier()
    except (RuntimeError, ValueError, OSError) as error:
        raise Failure(
            Reason.NCCL_ERROR, f"the {process.world_size} processes of the training cannot form a group: {error}"
        ) from error


def shutdown() -> None:
    """Wait for all processes and leave the group: a process that ends later does not fail the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        for name in library_variables(Process(world_size=2)):
            os.environ.pop(name, None)


def any_rank(value: bool) -> bool:
    """Return whether ``value`` is true in any process."""
    if not dist.is_initialized():
        return value
    flags = torch.tensor([int(value)])
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def broadcast(value: Any) -> Any:
    """Return the value of the process of rank 0."""
    if not dist.is_initialized():
        return value
    values = [value]
    _wait_for(partial(dist.broadcast_object_list, values, src=0))
    return values[0]


def gather_everywhere(value: Any) -> list[Any]:
    """Return the values of all processes, by rank, in each process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    _wait_for(partial(dist.all_gather_object, values, value))
    return values


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this process's part of the items. All parts have the same length, so an item may be in two of them."""
    if not dist.is_initialized() or not items:
        return items
    size, rank = dist.get_world_size(), dist.get_rank()
    return [items[number % len(items)] for number in range(rank, -(-len(items) // size) * size, size)]


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, by rank, in the process of rank 0; in the others an empty list."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(value, values if dist.get_rank() == 0 else None, dst=0)
    return values if dist.get_rank() == 0 else []


def _wait_for(call: Callable[[], T]) -> T:
    """Make a call that waits for the other processes in torch's C++, so that this thread still handles signals."""
    return start_thread(call)()
