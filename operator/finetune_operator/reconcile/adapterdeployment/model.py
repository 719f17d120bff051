"""The values that pass from gather to plan to apply of a serving group.

They are plain data, so that the plan is a pure function.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.adapterdeployment import AdapterDeploymentSpec, AdapterDeploymentStatus, AdapterVersion, JobIdentity
from finetune_api.finetunejob import AdapterStatus
from finetune_api.messages import AgentAdapter, AgentReport, DesiredAdapter, DesiredState
from finetune_api.reasons import Reason
from finetune_engines.base import Engine
from finetune_operator.event_record import EventRecord
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.engine_args import EngineArgs
from finetune_operator.policies.failed_rollout import Failure
from finetune_operator.policies.rollback import RollbackInForce
from finetune_operator.reconcile.status_builder import StatusBuilder

AdapterStatusBuilder = StatusBuilder[AdapterDeploymentStatus]


@dataclass(frozen=True)
class Observed:
    """All AdapterDeployments of one inference Deployment, the oldest first, and what they depend on."""

    namespace: str
    name: str
    """Name of the Deployment."""
    deployment: Object | None
    """Read from the API server, with its managedFields."""
    resources: tuple[Object, ...]
    """The AdapterDeployments."""
    finetune_jobs: Mapping[str, Object] = field(default_factory=dict)
    """The FineTuneJobs of the namespace by name."""
    pods: tuple[Object, ...] = ()
    """The pods that have an agent."""
    agent_reports: Mapping[str, AgentReport] = field(default_factory=dict)
    """The newest report of each agent by the name of its pod."""
    config_map: Object | None = None
    """The desired state that the agents read."""
    watched_seconds: float = math.inf
    """For how long this process of the operator has received the agents' reports."""


@dataclass(frozen=True)
class Obstacle:
    """Why an adapter is not rolled out. ``stalled``: only a person can change it; else the operator waits."""

    reason: Reason
    message: str
    stalled: bool = True


@dataclass(frozen=True)
class Source:
    """Where the adapter of an AdapterDeployment comes from."""

    desired: DesiredAdapter
    """What the pods are to serve."""
    finetune_job: JobIdentity | None = None
    """The FineTuneJob that it came from."""
    adapter: AdapterStatus | None = None
    """What this job says of it; None for one given by uri, and if the job is gone."""
    note: str = ""
    """What a person should know of it."""


@dataclass(frozen=True)
class ServingTarget:
    """The Deployment as a target: container, port and API key are shared by its AdapterDeployments."""

    container: str
    port: int
    api_key_secret: str | None
    engine: Engine
    engine_args: EngineArgs

    def shares_engine(self, other: "ServingTarget") -> bool:
        """Return whether both mean the same engine, reached in the same way."""
        mine = (self.engine.name, self.container, self.port, self.api_key_secret)
        return mine == (other.engine.name, other.container, other.port, other.api_key_secret)


@dataclass(frozen=True)
class Member:
    """One AdapterDeployment of the group in a pass."""

    resource: Object
    spec: AdapterDeploymentSpec | None
    """None if it is not valid."""
    obstacle: Obstacle | None = None
    asked: AdapterVersion | None = None
    """The version that the spec asks for; None if that is not known yet."""
    rollback: RollbackInForce | None = None
    """Why an older version is served in its place."""
    desired: DesiredAdapter | None = None
    """What the pods are to serve; None if that is not known yet."""
    finetune_job: JobIdentity | None = None
    """The FineTuneJob that it came from."""
    note: str = ""
    """What a person should know of the source of the adapter."""
    entry: DesiredAdapter | None = None
    """What the ConfigMap tells the pods to serve."""
    pods: Mapping[str, AgentAdapter] = field(default_factory=dict)
    """What each pod's agent reported about it."""
    unknown_fields: tuple[str, ...] = ()
    """Paths of fields that only a newer version knows."""
    suspended: bool = False
    """Whether ``spec.suspend`` holds back something that would be done now."""
    pause: float = 0.0
    """Seconds until the next pod may take the version."""
    failure: Failure | None = None
    """Why no further pod takes the version, by what the pods say."""
    rolled_out: bool = False
    """Whether every pod of the Deployment serves the desired version."""


@dataclass(frozen=True)
class Injection:
    """The agent in the Deployment."""

    body: Object
    """What to apply for it."""
    due: bool
    """Whether to apply it now."""
    held: str = ""
    """What the pods get only when they are replaced anyway."""


@dataclass(frozen=True)
class Plan:
    """The changes to make, in this order.

    ``remove`` takes everything of ours out of the Deployment instead.
    """

    members: tuple[Member, ...] = ()
    state: DesiredState | None = None
    config_map: Object | None = None
    injection: Injection | None = None
    remove: bool = False
    requeue_after: float | None = None


@dataclass(frozen=True)
class StatusUpdate:
    """The new status of one AdapterDeployment, and its events."""

    resource: Object
    status: Object
    events: tuple[EventRecord, ...] = ()
    requeue_after: float | None = None
    """Seconds until the next pass, if this status asks for one."""
