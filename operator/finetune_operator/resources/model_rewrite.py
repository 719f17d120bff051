"""Build and read the InferenceModelRewrite that divides the requests for a served name between its versions. Pure.

Of several rewrites that match a name the gateway follows the oldest, without a word (Gateway API Inference Extension).
"""

from collections.abc import Iterable
from datetime import datetime

from finetune_api.adapterdeployment import InferenceModelRewrite
from finetune_api.timestamps import parse_timestamp
from finetune_operator.kube.kinds import (
    FIELD_MANAGER,
    INFERENCE_POOL,
    MANAGED_BY_LABEL,
    Object,
    adapter_deployment_owner,
    controller_uid,
)
from finetune_operator.policies.traffic import Shares


def build_rewrite(resource: Object, served_name: str, reference: InferenceModelRewrite, shares: Shares) -> Object:
    """Build the rewrite of an AdapterDeployment, which owns it; equal shares give equal objects."""
    meta = resource["metadata"]
    targets = [{"modelRewrite": name, "weight": weight} for name, weight in sorted(shares.items())]
    pool = {"group": INFERENCE_POOL.group, "kind": INFERENCE_POOL.name, "name": reference.pool_ref.name}
    return {
        "metadata": {
            "namespace": meta["namespace"],
            "name": meta["name"],
            "labels": {MANAGED_BY_LABEL: FIELD_MANAGER},
            "ownerReferences": [adapter_deployment_owner(meta["name"], meta["uid"])],
        },
        "spec": {
            "poolRef": pool,
            "rules": [{"matches": [{"model": {"type": "Exact", "value": served_name}}], "targets": targets}],
        },
    }


def is_written(rewrite: Object | None, desired: Object) -> bool:
    """Return whether the rewrite has what is desired."""
    return rewrite is not None and all(
        rewrite.get("spec", {}).get(name) == value for name, value in desired["spec"].items()
    )


def read_shares(rewrite: Object | None) -> Shares | None:
    """Read the shares of our rewrite; None if it is not there, or has been edited to something else."""
    rules = (rewrite or {}).get("spec", {}).get("rules") or []
    if len(rules) != 1:
        return None
    return {str(target["modelRewrite"]): int(target.get("weight") or 0) for target in rules[0].get("targets") or []}


def find_own(rewrites: Iterable[Object], resource: Object) -> Object | None:
    """Find the rewrite with the name of the AdapterDeployment, whoever made it."""
    name = resource["metadata"]["name"]
    return next((rewrite for rewrite in rewrites if rewrite["metadata"]["name"] == name), None)


def is_ours(rewrite: Object, resource: Object) -> bool:
    """Return whether the AdapterDeployment owns the rewrite."""
    return controller_uid(rewrite) == str(resource["metadata"]["uid"])


def find_stronger(rewrites: Iterable[Object], resource: Object, pool: str, served_name: str) -> Object | None:
    """Find a rewrite of somebody else that the gateway follows in place of ours: an older one for the same name."""
    rewrites = list(rewrites)
    own = find_own(rewrites, resource)
    for rewrite in rewrites:
        is_rival = rewrite is not own and (rewrite["spec"].get("poolRef") or {}).get("name") == pool
        if is_rival and _matches(rewrite, served_name) and (own is None or _is_as_old(rewrite, own)):
            return rewrite
    return None


def _matches(rewrite: Object, served_name: str) -> bool:
    """Return whether a rule names the model. One without matches is weaker than ours."""
    rules = rewrite["spec"].get("rules") or []
    return any(match["model"]["value"] == served_name for rule in rules for match in rule.get("matches") or [])


def _is_as_old(rewrite: Object, own: Object) -> bool:
    """Return whether a rewrite is not younger than ours: among equally old ones the gateway may follow either."""
    created = parse_timestamp(rewrite["metadata"]["creationTimestamp"])
    return created <= parse_timestamp(own["metadata"]["creationTimestamp"])


def find_change_time(rewrite: Object | None) -> datetime | None:
    """Find when the operator last changed the rewrite, by the API server's clock."""
    entries = (rewrite or {}).get("metadata", {}).get("managedFields") or []
    times = [parse_timestamp(entry["time"]) for entry in entries if entry.get("manager") == FIELD_MANAGER]
    return max(times, default=None)
