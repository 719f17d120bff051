"""Which of the processes that train together this one is: one for each GPU, on one node or on several. Knows no torch."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Process:
    """One of ``number`` processes. The one of rank 0 alone speaks for the run: it reports, uploads, verifies, and leaves the result."""

    rank: int = 0
    number: int = 1
    local: int = 0
    """Which one of its node it is, and so which of the node's GPUs it has."""
    here: int = 1
    """How many there are on its node; the one that the pod began with starts the others."""
    address: str | None = None
    """``host:port`` where all of them meet; None where they are all on one node, and meet in a file."""

    @property
    def leads(self) -> bool:
        """Whether it speaks for the run."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """For people, who count the GPUs of a node from 0 as well."""
        return f"process {self.rank} of {self.number}"

    def others_here(self) -> list["Process"]:
        """Those that the first one of a node has to start."""
        return [replace(self, rank=self.rank + more, local=more) for more in range(1, self.here)]


def library_variables(process: Process) -> dict[str, str]:
    """What torch, accelerate and transformers read of it, as torchrun sets it. For one process nothing: they then know of no others."""
    if process.number == 1:
        return {}
    return {
        "RANK": str(process.rank),
        "WORLD_SIZE": str(process.number),
        "LOCAL_RANK": str(process.local),
        "LOCAL_WORLD_SIZE": str(process.here),
    }
