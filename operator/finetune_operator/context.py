"""What every pass has at hand."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_operator.kube.client import Kube
from finetune_operator.kube.kinds import Key
from finetune_operator.metrics import Metrics
from finetune_operator.policies.budget import WriteBudget
from finetune_operator.queue import KeyedQueue
from finetune_operator.report.store import Reports
from finetune_operator.settings import Settings
from finetune_operator.store import Store


@dataclass(frozen=True)
class Context:
    """The parts of the running operator; built by the composition root, and by tests."""

    settings: Settings
    kube: Kube
    store: Store
    queue: KeyedQueue[Key]
    reports: Reports
    metrics: Metrics
    budget: WriteBudget
    """For status writes that only carry progress."""
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the store has everything for the first time: before that nothing is decided."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
