"""``AdapterDeployment``: serves a finished adapter on every pod of a Deployment, with proof that its weights answer."""

from finetune_api.adapterdeployment.rollback import (
    ROLLBACK_ANNOTATION,
    RollbackRequest,
    find_last_good,
    list_deployed,
    list_rolled_back,
    read_request,
)
from finetune_api.adapterdeployment.spec import (
    AdapterDeploymentSpec,
    AdapterSource,
    NameRef,
    Rollback,
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
    RollbackStatus,
)

__all__ = [
    "ROLLBACK_ANNOTATION",
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
    "Rollback",
    "RollbackRequest",
    "RollbackStatus",
    "Strategy",
    "Target",
    "Verification",
    "find_last_good",
    "list_deployed",
    "list_rolled_back",
    "read_request",
]
