"""Hold the parts of the running operator that every pass uses."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_operator.analyses.running import Analyses
from finetune_operator.cache import Cache
from finetune_operator.kube.client import Kube
from finetune_operator.kube.kinds import Key
from finetune_operator.leadership import Leadership
from finetune_operator.metrics import Metrics
from finetune_operator.pod_reports import PodReports
from finetune_operator.policies.apply_backoff import ApplyBackoff
from finetune_operator.policies.budget import WriteBudget
from finetune_operator.queue import KeyedQueue
from finetune_operator.settings import Settings
from finetune_operator.warning_events import WarningEvents


@dataclass(frozen=True)
class Context:
    """The parts of the running operator; built by the composition root, and by tests."""

    settings: Settings
    kube: Kube
    cache: Cache
    queue: KeyedQueue[Key]
    pod_reports: PodReports
    metrics: Metrics
    leadership: Leadership
    budget: WriteBudget
    """Limits the status writes that only carry progress."""
    warnings: WarningEvents
    analyses: Analyses
    """Runs the analyses of canaries at the same time as the passes."""
    injections: ApplyBackoff = field(default_factory=ApplyBackoff)
    """Delays applies to a workload from which somebody removes the agent again and again."""
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the cache has listed everything."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
