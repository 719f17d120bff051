"""Describe an inference engine: what the project must know of it, and what its driver must do.

This module must not know any particular engine, Kubernetes or S3.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from finetune_api.engines import EngineName
from finetune_api.reasons import Reason


@dataclass(frozen=True)
class EngineState:
    """What an engine serves at one moment.

    Attributes:
        bases: Names of the base model.
        adapters: Path of each loaded adapter, by the name under which it is loaded.
        identity: Differs for each process of the engine. Empty if the engine does not report one.
    """

    bases: tuple[str, ...]
    adapters: Mapping[str, str] = field(default_factory=dict)
    identity: str = ""


@dataclass(frozen=True)
class EngineVersion:
    """Properties of a running engine that depend on its version.

    Attributes:
        version: The version, as the engine reports it; None if it does not.
        load_disturbs_requests: Requests of another adapter that run during a load may get wrong answers.
        name_keeps_cache: A name that moves to another adapter may answer from the cache of the adapter before.
        find_misserved: Returns what this version serves wrongly of an adapter_config.json, one sentence each.
        limits: What follows from it for the user, one sentence each.
    """

    version: str | None
    load_disturbs_requests: bool
    name_keeps_cache: bool
    find_misserved: Callable[[Mapping[str, Any]], list[str]]
    limits: tuple[str, ...]


class EngineError(Exception):
    """The engine answered with an error.

    Attributes:
        reason: Reason for the status.
        message: What is wrong, and what to do.
        permanent: The engine will refuse the same request again.
        unexplained: It is unknown whether a repetition helps, so the agent repeats it a few times only.
    """

    def __init__(self, reason: Reason, message: str, *, permanent: bool, unexplained: bool = False) -> None:
        """Keep what is wrong, and whether a repetition can help."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.permanent = permanent
        self.unexplained = unexplained


class EngineUnreachableError(EngineError):
    """The engine did not answer.

    The end of an engine during a request is unexplained, because the adapter may have caused it.

    Attributes:
        ended: Nothing listens at the address, so the engine's process has ended.
    """

    def __init__(self, message: str, *, ended: bool = False, unexplained: bool = False) -> None:
        """Keep what is wrong, and whether a repetition can help."""
        super().__init__(Reason.ENGINE_UNREACHABLE, message, permanent=False, unexplained=unexplained)
        self.ended = ended


class Driver(Protocol):
    """Talks to one running engine.

    Each method raises EngineError, and EngineUnreachableError if the engine does not answer.
    """

    async def inspect(self) -> EngineState:
        """Return the models that the engine serves, and the identity of its process."""
        ...

    async def read_version(self) -> str | None:
        """Return the engine's version; None if it reports none."""
        ...

    async def list_models(self) -> EngineState:
        """Return the models that the engine serves. Cheap enough for a probe that asks each second."""
        ...

    async def load_adapter(self, name: str, path: str) -> None:
        """Load the adapter at ``path`` under a name that is not in use."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Remove an adapter; a name that is not loaded is no error.

        Running requests finish on the weights with which they began.
        """
        ...

    async def logprobs(
        self, model: str, questions: Sequence[tuple[Sequence[int], int]], *, at_once: int
    ) -> list[float]:
        """Return the log-probability of a token after a prompt, for each pair of prompt and token.

        Must be safe while clients use the engine.

        Args:
            model: Name of the base model or of an adapter.
            questions: Pairs of a prompt, as token ids, and the id of the token that follows it.
            at_once: Maximum number of questions at a time.
        """
        ...

    async def busy_adapters(self) -> frozenset[str]:
        """Return the adapters that have running or waiting requests."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class NoLogprobsError(EngineError):
    """The engine does not tell the log-probabilities of given tokens, so that no answer of it can be proven."""

    def __init__(self, message: str) -> None:
        """Keep what is wrong."""
        super().__init__(Reason.ENGINE_REFUSED, message, permanent=True)


@dataclass(frozen=True)
class EngineKeys:
    """The keys that a running engine may ask for.

    Attributes:
        api: Key of its clients; None: it asks for none.
        admin: Key of those who load adapters; None: the same as its clients'.
    """

    api: str | None = None
    admin: str | None = None


@dataclass(frozen=True)
class Engine:
    """The facts about one inference engine.

    Attributes:
        name: Value of ``spec.target.engine``.
        title: How the engine writes its own name.
        port: Default port of its HTTP interface.
        connect: Opens a driver: ``(URL, keys, paths)``. ``paths`` has the directory of each version that the engine was
            to be started with, by its served name; empty for an engine that loads adapters.
        judge_version: Returns what follows from the version of a running engine; None: it is not known.
        client_model: Returns the model that clients ask for: ``(base, served name)``.
        serves_merged: It serves base and adapter as one merged model, and no adapter. The attributes below stay unset.
        start_words: Words that start the engine. If a container's command has one, all arguments are visible.
        config_arguments: Arguments that read further arguments from a file.
        lora_arguments: Arguments each of which turns LoRA on, the usual one first.
        max_rank_argument: Argument for the highest rank.
        default_max_rank: Highest rank without that argument; None: the engine finds it out when it starts.
        modules_argument: Argument that names the modules to which adapters apply; without it all.
        slot_arguments: Arguments for the number of adapters that it keeps in memory; the first that is there counts.
        default_slots: That number without the arguments; None: as many as fit.
        base_arguments: Arguments that name the base model.
        ranks: Values that ``max_rank_argument`` may have, in ascending order.
        environment: Variables that must be set before adapters can be loaded at run time, with the values that do so.
            The operator sets the first value, and leaves any of them that the user has set.
        ignored_tensors: Endings of tensor names that the engine skips when it loads an adapter.
        find_unsupported: Returns what the engine cannot serve of an adapter_config.json, one sentence each.
        adapter_command: Returns the shell command that serves a base with one adapter:
            ``(base, adapter directory, served name, rank)``.
        model_command: Returns the shell command that serves a whole model: ``(model directory, served name)``.
    """

    name: EngineName
    title: str
    port: int
    connect: Callable[[str, EngineKeys, Mapping[str, str]], Driver]
    judge_version: Callable[[str | None], EngineVersion]
    client_model: Callable[[str, str], str]
    serves_merged: bool = False
    start_words: tuple[str, ...] = ()
    config_arguments: tuple[str, ...] = ()
    lora_arguments: tuple[str, ...] = ()
    max_rank_argument: str = ""
    default_max_rank: int | None = None
    modules_argument: str = ""
    slot_arguments: tuple[str, ...] = ()
    default_slots: int | None = None
    base_arguments: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    environment: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignored_tensors: tuple[str, ...] = ()
    find_unsupported: Callable[[Mapping[str, Any]], list[str]] = lambda _: []
    adapter_command: Callable[[str, str, str, int], str] = lambda base, adapter, name, rank: ""
    model_command: Callable[[str, str], str] = lambda model, name: ""

    def fitting_rank(self, rank: int) -> int | None:
        """Return the smallest value of ``max_rank_argument`` that admits ``rank``; None if there is none."""
        return next((value for value in self.ranks if value >= rank), None)

    def rank_remedy(self, rank: int, maximum: int) -> str:
        """Return what to do about an adapter whose rank is above the engine's maximum."""
        fitting = self.fitting_rank(rank)
        restart = f"start {self.title} with {self.max_rank_argument} {fitting}, or " if fitting else ""
        return f"{restart}train with rank {maximum} or less"
