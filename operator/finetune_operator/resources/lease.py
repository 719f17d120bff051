"""Build and read the Lease by which replicas elect a leader, as the leader election of client-go does."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api import GROUP
from finetune_api.timestamps import format_micro_time
from finetune_operator.kube.kinds import LEASE, ROLE_LABEL, Object

NAME = "finetune-operator"
"""Name of the Lease. It is the same in each installation, so that two of them compete for it in a namespace."""
LEADER = "leader"
RELEASE_ANNOTATION = f"{GROUP}/release"
"""Namespace and name of the holder's installation."""
ADDRESS_ANNOTATION = f"{GROUP}/address"
"""URL at which the holder receives reports."""
SCOPE_ANNOTATION = f"{GROUP}/scope"
ONE_NAMESPACE, ALL_NAMESPACES = "namespace", "all"
"""Values of ``SCOPE_ANNOTATION``: the namespaces in which the holder works."""
LEASE_SECONDS = 10
"""Others may take a Lease that did not change for this time."""
DEADLINE_SECONDS = 7.0
"""A leader that could not renew its Leases for this time stops writing, well before another one begins."""
RENEW_SECONDS = 2.0
"""Time between two tries to take or renew the Leases."""


@dataclass(frozen=True)
class Sighting:
    """A version of a Lease, and when it was first seen, by the clock of this process.

    The times in the Lease do not count, because the clocks of different nodes are never compared.
    """

    version: str
    at: float


def note_sighting(lease: Object, before: Sighting | None, now: float) -> Sighting:
    """Return the current version of the Lease, and when it was first seen."""
    version = lease["metadata"]["resourceVersion"]
    return before if before is not None and before.version == version else Sighting(version, now)


def holder_of(lease: Object) -> str:
    """Return the identity of the replica that holds a Lease; empty where it was given back."""
    return str(lease.get("spec", {}).get("holderIdentity") or "")


def is_free(lease: Object, sighting: Sighting, now: float) -> bool:
    """Return whether anybody may take the Lease: it was given back, or was not renewed in time."""
    duration = lease.get("spec", {}).get("leaseDurationSeconds") or LEASE_SECONDS
    return not holder_of(lease) or now - sighting.at > duration


def build_lease(
    namespace: str, holder: str, release: str, address: str, scope: str, now: datetime, before: Object | None
) -> Object:
    """Build the Lease with which a holder takes or renews ``before``; None if there is no Lease yet."""
    time = format_micro_time(now)
    previous = before.get("spec", {}) if before else {}
    renews = previous.get("holderIdentity") == holder
    return {
        "apiVersion": LEASE.api_version,
        "kind": LEASE.name,
        "metadata": {
            "name": NAME,
            "namespace": namespace,
            "labels": {ROLE_LABEL: LEADER},
            "annotations": {RELEASE_ANNOTATION: release, ADDRESS_ANNOTATION: address, SCOPE_ANNOTATION: scope},
            **({"resourceVersion": before["metadata"]["resourceVersion"]} if before else {}),
        },
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": previous.get("acquireTime", time) if renews else time,
            "renewTime": time,
            "leaseTransitions": previous.get("leaseTransitions", 0) + (0 if renews or not before else 1),
        },
    }


def give_back(lease: Object) -> Object:
    """Build the Lease without a holder, so that another replica takes it at once."""
    return {**lease, "spec": {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}


def read_annotation(lease: Object, annotation: str) -> str:
    """Return an annotation of a Lease, or an empty text."""
    return str(lease["metadata"].get("annotations", {}).get(annotation, ""))
