"""What a pass over a serving group observes and decides: plain values, passed from gather to plan to apply."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.messages import AgentAdapter, AgentReport, DesiredAdapter, DesiredState
from finetune_api.reasons import Reason
from finetune_engines.base import Engine
from finetune_operator.kube.kinds import Object
from finetune_operator.notes import Note
from finetune_operator.policies.engine_args import EngineArgs


@dataclass(frozen=True)
class Group:
    """All AdapterDeployments of one inference Deployment, the oldest first, and what they depend on.

    ``deployment`` is read live, with its managedFields. ``pods`` are those with an agent; ``reports`` what their agents said, by pod name.
    """

    namespace: str
    name: str
    deployment: Object | None
    adapters: tuple[Object, ...]
    jobs: Mapping[str, Object] = field(default_factory=dict)
    pods: tuple[Object, ...] = ()
    reports: Mapping[str, AgentReport] = field(default_factory=dict)
    config_map: Object | None = None


@dataclass(frozen=True)
class Obstacle:
    """Why an adapter is not rolled out. ``stalled``: only a person can mend it; else it is waited for."""

    reason: Reason
    message: str
    stalled: bool = True


@dataclass(frozen=True)
class Target:
    """The Deployment as a serving target: container, port and key are the group's, the arguments those of the engine."""

    container: str
    port: int
    api_key_secret: str | None
    engine: Engine
    engine_args: EngineArgs


@dataclass(frozen=True)
class Member:
    """One AdapterDeployment in a pass. ``entry`` is what the pods are told to serve for it; ``wanted`` what it asks for, if that is known."""

    item: Object
    spec: AdapterDeploymentSpec | None
    obstacle: Obstacle | None = None
    wanted: DesiredAdapter | None = None
    entry: DesiredAdapter | None = None
    pods: Mapping[str, AgentAdapter] = field(default_factory=dict)
    complete: bool = False


@dataclass(frozen=True)
class GroupPlan:
    """What is to be written, in this order; ``remove`` takes everything of ours out again."""

    members: tuple[Member, ...] = ()
    state: DesiredState | None = None
    config_map: Object | None = None
    injection: Object | None = None
    remove: bool = False
    requeue_after: float | None = None


@dataclass(frozen=True)
class NewStatus:
    """A status to write, with the events that belong to it."""

    item: Object
    status: Object
    notes: tuple[Note, ...] = ()
