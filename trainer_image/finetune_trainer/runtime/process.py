"""Describe this process among those that train together: one for each GPU, on one or more nodes. Needs no torch."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Process:
    """One of ``world_size`` processes.

    Only the main process, rank 0, reports, uploads, verifies and writes the result. ``address`` is the ``host:port``
    at which the processes of several nodes connect; None if all are on one node, where they use a file.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    address: str | None = None

    @property
    def is_main_process(self) -> bool:
        """Return whether this process acts for the whole run."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """Return the name of the process, for messages."""
        return f"process {self.rank} of {self.world_size}"

    def local_workers(self) -> list["Process"]:
        """Return the processes that the first process of a node starts."""
        return [replace(self, rank=self.rank + i, local_rank=i) for i in range(1, self.local_world_size)]


def library_variables(process: Process) -> dict[str, str]:
    """Return the environment variables that torchrun would set; none for a single process."""
    if process.world_size == 1:
        return {}
    return {
        "RANK": str(process.rank),
        "WORLD_SIZE": str(process.world_size),
        "LOCAL_RANK": str(process.local_rank),
        "LOCAL_WORLD_SIZE": str(process.local_world_size),
    }
