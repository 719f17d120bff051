"""Run ``finetune resume``, ``promote`` and ``abort``: continue or end an AdapterDeployment's canary.

They write annotations. The spec stays as Git has it, and the operator follows the annotations into the status.
"""

from finetune_api.adapterdeployment import (
    PROMOTION_ANNOTATION,
    CanaryStatus,
    PromotionRequest,
)
from finetune_cli.annotations import KIND, annotate, print_message, read_status, title
from finetune_cli.cluster import Cluster, Object
from finetune_cli.control import suspend
from finetune_cli.errors import CliError
from finetune_cli.rollback import roll_back


def resume(cluster: Cluster, name: str) -> None:
    """Resume the job of this name if it is suspended, else the canary. Raises CliError."""
    items = {item["kind"]: item for item in cluster.find(name)}
    job, deployment = items.get("FineTuneJob"), items.get(KIND)
    if deployment is None or (job is not None and job["spec"].get("suspend")):
        suspend(cluster, name, False)
        return
    canary = _find_canary(deployment)
    if canary.reached_at is None:
        raise CliError(
            f"{title(deployment)}: the pods of this step do not serve the version yet, so it waits for nobody: "
            "finetune status shows them"
        )
    step = canary.passed_steps + 1
    annotate(cluster, deployment, PROMOTION_ANNOTATION, PromotionRequest(started_at=canary.started_at, step=step))
    print_message(deployment, f"goes on after step {step} of its canary")


def retry(cluster: Cluster, name: str) -> None:
    """Let the analysis of the canary's present step be made again. Raises CliError."""
    deployment = cluster.find_one(KIND, name)
    canary = _find_canary(deployment)
    if canary.analysis is None:
        raise CliError(f"{title(deployment)}: the analysis of the present step has no result yet")
    annotate(
        cluster,
        deployment,
        PROMOTION_ANNOTATION,
        PromotionRequest(started_at=canary.started_at, again=canary.analysis.at),
    )
    print_message(deployment, "makes the analysis of its canary again")


def promote(cluster: Cluster, name: str) -> None:
    """Let every pod take the version of the canary. Raises CliError."""
    deployment = cluster.find_one(KIND, name)
    canary = _find_canary(deployment)
    annotate(cluster, deployment, PROMOTION_ANNOTATION, PromotionRequest(started_at=canary.started_at))
    print_message(deployment, "goes on without the remaining steps of its canary")


def abort(cluster: Cluster, name: str) -> None:
    """Let the pods go back to the last good version, while a roll-out is going on. Raises CliError."""
    deployment = cluster.find_one(KIND, name)
    status = read_status(deployment)
    if status.desired is None or (status.active is not None and status.active.digest == status.desired.digest):
        raise CliError(
            f"{title(deployment)}: no roll-out is going on; to go back to an older version: "
            f"finetune rollback {deployment['metadata']['name']}"
        )
    roll_back(cluster, name, None)


def _find_canary(deployment: Object) -> CanaryStatus:
    """Find the canary that is going on. Raises CliError if there is none, or it cannot go on."""
    status = read_status(deployment)
    if deployment["spec"].get("suspend"):
        raise CliError(f"{title(deployment)} is suspended: set spec.suspend to false, where its spec comes from")
    if status.canary is None or not status.canary.is_at_a_step:
        raise CliError(f"{title(deployment)}: no canary is going on")
    return status.canary
