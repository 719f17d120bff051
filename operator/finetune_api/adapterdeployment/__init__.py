"""Define ``AdapterDeployment``, which serves a finished adapter on every pod of a workload, with proof."""

from finetune_api.adapterdeployment.analysis import (
    Analysis,
    AnalysisTemplateRef,
    JobAnalysis,
    PrometheusAnalysis,
    WebhookAnalysis,
)
from finetune_api.adapterdeployment.canary import Canary, CanaryStep, InferenceModelRewrite, Traffic
from finetune_api.adapterdeployment.promotion import PROMOTION_ANNOTATION, PromotionRequest, read_promotion
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
    Rollback,
    Strategy,
    Target,
    Verification,
)
from finetune_api.adapterdeployment.status import (
    AdapterDeploymentStatus,
    AdapterVersion,
    AnalysisStatus,
    CanaryStatus,
    EngineStatus,
    HistoryEntry,
    JobIdentity,
    PodCounts,
    PodStatus,
    RollbackStatus,
)

__all__ = [
    "PROMOTION_ANNOTATION",
    "ROLLBACK_ANNOTATION",
    "AdapterDeploymentSpec",
    "AdapterDeploymentStatus",
    "AdapterSource",
    "AdapterVersion",
    "Analysis",
    "AnalysisStatus",
    "AnalysisTemplateRef",
    "Canary",
    "CanaryStatus",
    "CanaryStep",
    "EngineStatus",
    "HistoryEntry",
    "InferenceModelRewrite",
    "JobAnalysis",
    "JobIdentity",
    "PodCounts",
    "PodStatus",
    "PrometheusAnalysis",
    "PromotionRequest",
    "Rollback",
    "RollbackRequest",
    "RollbackStatus",
    "Strategy",
    "Target",
    "Traffic",
    "Verification",
    "WebhookAnalysis",
    "find_last_good",
    "list_deployed",
    "list_rolled_back",
    "read_promotion",
    "read_request",
]
