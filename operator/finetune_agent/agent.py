"""Hold one running agent: its settings, its memory, and the engine that it drives. It decides nothing."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from finetune_agent.desired import DesiredFile
from finetune_agent.readiness import Readiness, judge_readiness
from finetune_agent.settings import Settings
from finetune_agent.state import Memory
from finetune_api.engines import EngineName
from finetune_api.messages import DesiredState
from finetune_api.version_paths import version_directory
from finetune_engines import ENGINES
from finetune_engines.base import Driver, EngineKeys, EngineState

API_KEY = "API_KEY"
ADMIN_API_KEY = "ADMIN_API_KEY"
"""Keys of the Secret that ``spec.target.apiKeySecretRef`` names."""


@dataclass
class Agent:
    """One running agent. All times are monotonic seconds.

    Attributes:
        settings: Paths, ports and patience.
        memory: What the agent remembers from one tick to the next.
        driver: Connection to the engine, once the desired state names one.
        connection: Engine, URL, keys and paths of ``driver``.
        engine_state: What the engine serves; None while it does not answer.
        inspected_at: When the engine was asked for ``engine_state``.
        restored: Whether the versions on the volume were found again.
        tasks: The running action of each served name.
        turn: Held by the action that uses an engine whose loads disturb requests.
        settled: Whether the engine answered at the last tick, and nothing was to be done or awaited.
        acted_at: When the last action for a served name ended. An older ``engine_state`` does not show its effect.
        wake: Ends the pause between two ticks.
        report_due: Ends the pause between two reports.
        downloads: Limits the downloads at the same time, each of which needs memory.
        heartbeat: When the last tick ended.
    """

    settings: Settings
    memory: Memory = field(default_factory=Memory)
    driver: Driver | None = None
    connection: tuple[EngineName, str, EngineKeys, dict[str, str]] | None = None
    engine_state: EngineState | None = None
    inspected_at: float = 0.0
    restored: bool = False
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    settled: bool = False
    acted_at: dict[str, float] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    report_due: asyncio.Event = field(default_factory=asyncio.Event)
    downloads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    heartbeat: float = 0.0
    desired_file: DesiredFile = field(init=False)

    def __post_init__(self) -> None:
        """Find the file of the desired state."""
        self.desired_file = DesiredFile(self.settings.desired_file)

    @property
    def desired(self) -> DesiredState | None:
        """Return the desired state; None until it is read for the first time."""
        return self.desired_file.state

    def judge_readiness(self, engine_state: EngineState | None) -> Readiness:
        """Return whether the pod may take traffic, given the engine's latest answer."""
        return judge_readiness(
            self.desired, self.settings.pod, engine_state, self.memory, self.settings.adapters_directory
        )


async def connect_engine(agent: Agent, desired: DesiredState) -> Driver:
    """Return the driver of the desired engine, and open a new one if engine, port, a key or a path changed.

    The keys are read each time, because a Secret may change.
    """
    url, keys = f"http://{agent.settings.engine_host}:{desired.port}", _read_keys(agent, desired)
    paths = _list_paths(agent, desired) if ENGINES[desired.engine].serves_merged else {}
    connection = (desired.engine, url, keys, paths)
    if agent.driver is None or agent.connection != connection:
        if agent.driver is not None:
            await agent.driver.close()
        agent.driver, agent.connection = ENGINES[desired.engine].connect(url, keys, paths), connection
    return agent.driver


def _list_paths(agent: Agent, desired: DesiredState) -> dict[str, str]:
    """Return the directory of each version in the pod's template, by its served name."""
    return {
        adapter.served_name: str(
            version_directory(agent.settings.adapters_directory, adapter.served_name, adapter.version.digest)
        )
        for adapter in desired.adapters
    }


def _read_keys(agent: Agent, desired: DesiredState) -> EngineKeys:
    if desired.api_key_secret is None:
        return EngineKeys()
    directory = agent.settings.secrets_directory / desired.api_key_secret
    return EngineKeys(api=_read_key(directory / API_KEY), admin=_read_key(directory / ADMIN_API_KEY))


def _read_key(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
