"""``AdapterDeployment``: serves a finished adapter on every pod of a Deployment, with proof that its weights answer."""

from finetune_api.adapterdeployment.spec import (
    AdapterDeploymentSpec,
    AdapterSource,
    NameRef,
    Strategy,
    Target,
    Verification,
)
from finetune_api.adapterdeployment.status import (
    AdapterDeploymentStatus,
    AdapterVersion,
    EngineStatus,
    HistoryEntry,
    JobIdentity,
    PodCounts,
    PodStatus,
)

__all__ = [
    "AdapterDeploymentSpec",
    "AdapterDeploymentStatus",
    "AdapterSource",
    "AdapterVersion",
    "EngineStatus",
    "HistoryEntry",
    "JobIdentity",
    "NameRef",
    "PodCounts",
    "PodStatus",
    "Strategy",
    "Target",
    "Verification",
]
