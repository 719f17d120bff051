"""Elect by Leases the replica that works: at any time one for each namespace.

A namespaced operator holds a Lease in each of its namespaces. An operator for all namespaces holds one in its own
namespace; it leaves out the namespaces in which a namespaced operator holds one.

This is client-go's leader election. The one in the Kubernetes client for Python never gives a Lease back, compares
clocks of nodes, and waits without end for an answer of the API server.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime

from finetune_operator.kube.client import Kube
from finetune_operator.kube.errors import KubeError
from finetune_operator.kube.kinds import LEASE, ROLE_LABEL, Object
from finetune_operator.resources.lease import (
    ADDRESS_ANNOTATION,
    ALL_NAMESPACES,
    DEADLINE_SECONDS,
    LEADER,
    NAME,
    ONE_NAMESPACE,
    RELEASE_ANNOTATION,
    RENEW_SECONDS,
    SCOPE_ANNOTATION,
    Sighting,
    build_lease,
    give_back,
    holder_of,
    is_free,
    note_sighting,
    read_annotation,
)
from finetune_operator.settings import Settings

LEADERS = f"{ROLE_LABEL}={LEADER}"
FOREIGN_LEASES_SECONDS = 10.0
"""Time between two lists of the Leases of other installations."""
logger = logging.getLogger(__name__)


class LeadershipLostError(Exception):
    """Another replica may work now, so this process has to end."""


class Leadership:
    """The Leases of this process. Without a release in the settings there is no election, and it always leads."""

    def __init__(self, kube: Kube, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Create it without Leases; ``clock`` returns monotonic seconds."""
        self._kube, self._clock = kube, clock
        self._release = settings.release
        self._identity = settings.pod_name or f"{settings.release}-{uuid.uuid4().hex}"
        self._address = settings.report_address
        self._is_namespaced = bool(settings.namespaces)
        self._namespaces = sorted(settings.namespaces) or [settings.release.partition("/")[0]]
        self._held: dict[str, Object] = {}
        self._sightings: dict[str, Sighting] = {}
        self._valid_until = 0.0
        self._since = clock()
        self._last_warning = ""
        self.leads = asyncio.Event()
        self.left_out: dict[str, str] = {}
        """Namespaces in which another installation works, each with that installation as ``namespace/name``."""
        self.leader_address = ""
        """Address at which the leading replica receives reports; empty while it is unknown."""
        self.rival = ""
        """Namespace and name of another installation that keeps this one from working."""
        if not self._release:
            self.leads.set()

    def may_write(self) -> bool:
        """Return whether no other replica can be working now."""
        return not self._release or (self.leads.is_set() and self._clock() < self._valid_until)

    async def try_to_lead(self) -> bool:
        """Try once to take all Leases of this process; return whether it leads."""
        if not self.leads.is_set() and await self._try(self._claim_all()):
            logger.info("Leading as %s.", self._identity)
            self.leader_address = ""
            self._since = self._clock()
            self.leads.set()
        return self.leads.is_set()

    async def acquire(self) -> None:
        """Wait until this process holds all of its Leases."""
        while not await self.try_to_lead():  # noqa: ASYNC110 -- a Lease wakes nobody
            await asyncio.sleep(RENEW_SECONDS)

    def measure_seconds(self) -> float:
        """Return for how many seconds this process has led."""
        return self._clock() - self._since

    async def keep(self, on_change: Callable[[str], None]) -> None:
        """Renew the Leases, and call ``on_change(namespace)`` when another installation has left a namespace.

        Raises ``LeadershipLostError`` when another replica may take over.
        """
        listed_at = self._clock()
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if not self._release:
                continue
            await self._try(self._claim_all())
            if not self.may_write():
                raise LeadershipLostError(f"the Lease {NAME} could not be renewed for {DEADLINE_SECONDS:.0f} s")
            if not self._is_namespaced and self._clock() - listed_at >= FOREIGN_LEASES_SECONDS:
                listed_at = self._clock()
                before = self.left_out
                await self._try(self._find_other_installations())
                for namespace in before.keys() - self.left_out.keys():
                    on_change(namespace)

    async def give_back(self) -> None:
        """Give the Leases back, so that another replica can take over at once. Call it after the last write."""
        self.leads.clear()
        for lease in self._held.values():
            try:
                async with asyncio.timeout(RENEW_SECONDS):
                    await self._kube.replace(LEASE, give_back(lease))
            except (KubeError, TimeoutError) as error:
                logger.warning("Could not give a Lease back; another replica takes over when it expires. %s", error)

    async def _try(self, action: Coroutine[None, None, bool]) -> bool:
        """Return the result of an action, or False after a timeout or a failure, which is logged."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS / 2):
                return await action
        except (KubeError, TimeoutError) as error:
            self._warn_once(f"Cannot take or renew the Lease {NAME}: {error or 'no answer in time'}")
            return False

    async def _claim_all(self) -> bool:
        """Take or renew each Lease, in the same order as all replicas; return whether all are held."""
        began = self._clock()
        if not self.leads.is_set() and not self._is_namespaced and not await self._find_other_installations():
            return False
        for namespace in self._namespaces:
            if not await self._claim(namespace):
                return False
        self._valid_until = began + DEADLINE_SECONDS
        self.rival = self._last_warning = ""
        return True

    async def _claim(self, namespace: str) -> bool:
        """Take or renew the Lease of a namespace; return whether it is held."""
        lease = self._held.get(namespace) or await self._kube.get(LEASE, namespace, NAME)
        is_foreign = lease is not None and holder_of(lease) not in ("", self._identity)
        if lease is not None and is_foreign and not self._is_free(namespace, lease):
            self._wait_for(lease)
            return False
        scope = ONE_NAMESPACE if self._is_namespaced else ALL_NAMESPACES
        desired_lease = build_lease(
            namespace, self._identity, self._release, self._address, scope, datetime.now(UTC), before=lease
        )
        self._held.pop(namespace, None)  # unless the write succeeds, the next try reads the Lease again
        write = self._kube.create if lease is None else self._kube.replace
        self._held[namespace] = await write(LEASE, desired_lease)
        return True

    def _is_free(self, key: str, lease: Object) -> bool:
        """Return whether anybody may take a Lease, and record when this version of it was first seen."""
        now = self._clock()
        sighting = self._sightings[key] = note_sighting(lease, self._sightings.get(key), now)
        return is_free(lease, sighting, now)

    async def _find_other_installations(self) -> bool:
        """Read the Leases of other installations; return whether none of them works in all namespaces.

        Namespaces in which a namespaced operator works are left out.
        """
        leases, _ = await self._kube.list(LEASE, None, LEADERS)
        left_out: dict[str, str] = {}
        for lease in leases:
            namespace, release = lease["metadata"]["namespace"], read_annotation(lease, RELEASE_ANNOTATION)
            if release == self._release:
                continue
            if self._is_free(f"{namespace} of {release}", lease):
                continue
            if read_annotation(lease, SCOPE_ANNOTATION) == ONE_NAMESPACE:
                left_out[namespace] = release
            elif not self.leads.is_set():
                self._wait_for(lease)
                return False
        for namespace in left_out.keys() - self.left_out.keys():
            logger.warning(
                "Installation %s works in namespace %s, so this one leaves it out.", left_out[namespace], namespace
            )
        self.left_out = left_out
        return True

    def _wait_for(self, lease: Object) -> None:
        """Record for which replica or installation this process waits, and log it once."""
        release = read_annotation(lease, RELEASE_ANNOTATION)
        namespace = lease["metadata"]["namespace"]
        if release == self._release:
            self.leader_address, self.rival = read_annotation(lease, ADDRESS_ANNOTATION), ""
            self._warn_once(f"Waiting: replica {holder_of(lease)} leads.")
            return
        self.leader_address, self.rival = "", release
        self._warn_once(
            f"Waiting: another installation, {release}, works in the same namespaces (Lease {NAME} in namespace "
            f"{namespace}). Uninstall one of the two, or give each its own namespaces with the chart value "
            "watchNamespaces."
        )

    def _warn_once(self, text: str) -> None:
        if text != self._last_warning:
            logger.warning(text)
            self._last_warning = text
