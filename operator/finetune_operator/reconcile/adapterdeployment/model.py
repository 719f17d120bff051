"""Define the values that pass from gather to plan to apply of a serving group.

They are plain data, so that the plan is a pure function.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.adapterdeployment import AdapterDeploymentSpec, AdapterDeploymentStatus, AdapterVersion, JobIdentity
from finetune_api.finetunejob import AdapterStatus
from finetune_api.messages import AgentAdapter, AgentReport, DesiredAdapter, DesiredState
from finetune_api.reasons import Reason
from finetune_engines.arguments import EngineArgs
from finetune_engines.base import Engine
from finetune_operator.event_record import EventRecord
from finetune_operator.kube.kinds import Object
from finetune_operator.kube.workloads import WorkloadRef
from finetune_operator.policies.analysis import AnalysisId, AnalysisRequest, Outcome
from finetune_operator.policies.canary import CanaryStage
from finetune_operator.policies.failed_rollout import Failure
from finetune_operator.policies.rollback import RollbackInForce
from finetune_operator.reconcile.status_builder import StatusBuilder

AdapterStatusBuilder = StatusBuilder[AdapterDeploymentStatus]


@dataclass(frozen=True)
class Gateway:
    """What the gateway of an AdapterDeployment with ``canary.traffic`` follows."""

    rewrites: tuple[Object, ...] = ()
    """All InferenceModelRewrites of the namespace."""
    pool: Object | None = None
    """The InferencePool; None if there is none."""
    other_pods: tuple[str, ...] = ()
    """Names of pods that the pool chooses and the target does not have."""
    problem: str = ""
    """Why they cannot be read."""


@dataclass(frozen=True)
class Observed:
    """All AdapterDeployments of one inference workload, the oldest first, and what they depend on."""

    namespace: str
    target: WorkloadRef
    """Kind and name of the workload that serves."""
    workload: Object | None
    """The workload as the API server has it, with its managedFields; None if it does not exist."""
    resources: tuple[Object, ...]
    """The AdapterDeployments."""
    finetune_jobs: Mapping[str, Object] = field(default_factory=dict)
    """The FineTuneJobs that the AdapterDeployments name, or all of the namespace if one has a selector, by name."""
    pods: tuple[Object, ...] = ()
    """The pods that have an agent."""
    agent_reports: Mapping[str, AgentReport] = field(default_factory=dict)
    """The newest report of each agent by the name of its pod."""
    config_map: Object | None = None
    """The desired state that the agents read."""
    analyses: Mapping[str, tuple[AnalysisId, Outcome]] = field(default_factory=dict)
    """The identity and outcome of each AdapterDeployment's newest analysis, by its name, if it has ended."""
    gateways: Mapping[str, Gateway] = field(default_factory=dict)
    """The gateway of each AdapterDeployment with ``canary.traffic``, by its name."""
    watched_seconds: float = math.inf
    """For how many seconds this process of the operator has received the agents' reports."""


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
    """The adapter in the status of this job; None for one given by uri, and if the job is gone."""
    note: str = ""
    """A note about it for the user."""


@dataclass(frozen=True)
class ServingTarget:
    """The workload as a target: container, port and API key are shared by its AdapterDeployments."""

    container: str
    port: int
    api_key_secret: str | None
    engine: Engine
    engine_args: EngineArgs
    rolling: bool = False
    """Whether the pod template carries the versions."""

    def shares_engine(self, other: "ServingTarget") -> bool:
        """Return whether both mean the same engine, reached in the same way."""
        return self._list_shared() == other._list_shared()

    def _list_shared(self) -> tuple[str, str, int, str | None, bool]:
        return self.engine.name, self.container, self.port, self.api_key_secret, self.rolling


@dataclass(frozen=True)
class Member:
    """One AdapterDeployment of the group in a pass."""

    resource: Object
    spec: AdapterDeploymentSpec | None
    """The parsed spec; None if it is not valid."""
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
    """A note about the source of the adapter for the user."""
    entry: DesiredAdapter | None = None
    """The entry in the ConfigMap: what the pods serve from now on."""
    versions: tuple[DesiredAdapter, ...] = ()
    """With ``canary.traffic``: the entries in the ConfigMap, the desired version first. Each version has its own."""
    rewrite: Object | None = None
    """With ``canary.traffic``: the InferenceModelRewrite to write; None: it is as it should be, or cannot be yet."""
    pods: Mapping[str, AgentAdapter] = field(default_factory=dict)
    """What each pod's agent reported about it."""
    unknown_fields: tuple[str, ...] = ()
    """Paths of fields that only a newer version knows."""
    suspended: bool = False
    """Whether ``spec.suspend`` prevents a change that would be made now."""
    pause: float = 0.0
    """Seconds until the next pod may take the version."""
    stage: CanaryStage | None = None
    """The step of its canary; None if every pod may take the version."""
    failure: Failure | None = None
    """Why no further pod takes the version, according to the pods' reports."""
    rolled_out: bool = False
    """Whether every pod of the workload serves the desired version."""


@dataclass(frozen=True)
class Injection:
    """The injection of the agent into the workload."""

    body: Object
    """The body of the server-side apply."""
    due: bool
    """Whether to apply it now."""
    pending: str = ""
    """Changes that the pods get only when they are replaced for another reason."""


@dataclass(frozen=True)
class Plan:
    """The changes to make, in this order.

    ``remove`` takes everything of ours out of the workload instead.
    """

    members: tuple[Member, ...] = ()
    state: DesiredState | None = None
    config_map: Object | None = None
    injection: Injection | None = None
    pod_labels: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    """Labels to change by the name of the pod; None for a label to remove."""
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
    analysis: AnalysisRequest | None = None
    """The analysis of the present step of a canary, to be started once the status is written."""
