"""What the agent asks of an inference engine, and how an engine's refusal is told from its absence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from finetune_api.reasons import Reason


@dataclass(frozen=True)
class EngineView:
    """What an engine serves at one moment.

    ``identity`` is another one for each process of the engine, as far as the engine tells ("" where it does not).
    ``adapters`` maps the name of each loaded adapter to the path that it was loaded from.
    """

    bases: tuple[str, ...]
    adapters: Mapping[str, str] = field(default_factory=dict)
    identity: str = ""


class EngineError(Exception):
    """The engine answered, and its answer is no.

    ``permanent``: the same request will be refused again. ``unexplained``: nobody can tell, so it is tried a few times only.
    """

    def __init__(self, reason: Reason, message: str, *, permanent: bool, unexplained: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.permanent = permanent
        self.unexplained = unexplained


class EngineUnreachableError(EngineError):
    """No answer. ``gone``: nothing listens, so the process that was there has ended.

    An engine that ends in the middle of a request is unexplained: the adapter may be what ends it, again and again.
    """

    def __init__(self, message: str, *, gone: bool = False, unexplained: bool = False) -> None:
        super().__init__(Reason.ENGINE_UNREACHABLE, message, permanent=False, unexplained=unexplained)
        self.gone = gone


class Engine(Protocol):
    """A driver. Each method raises EngineError, and EngineUnreachableError where there is no answer."""

    async def view(self) -> EngineView:
        """The names that the engine serves now, and which process it is."""
        ...

    async def models(self) -> EngineView:
        """The names alone, without the process's identity: what a readiness probe asks each second."""
        ...

    async def load(self, name: str, path: str) -> None:
        """Load the adapter at ``path`` under a name that is not in use."""
        ...

    async def unload(self, name: str) -> None:
        """Drop a name; one that is not there is no error. Requests in flight finish on the weights that they began with."""
        ...

    async def logprobs(self, model: str, asked: Sequence[tuple[Sequence[int], int]]) -> list[float]:
        """For each prompt and token: the log-probability of the token after the prompt. Safe while clients ask the engine too."""
        ...

    async def busy(self) -> frozenset[str]:
        """The adapters that have running or waiting requests."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...
