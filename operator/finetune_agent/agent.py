"""The agent as a whole: its settings, its memory, the engine, and what runs at the moment. The steps are in loop.py and work.py."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from finetune_agent.desired import DesiredFile
from finetune_agent.engines import Engine, EngineView, open_engine
from finetune_agent.readiness import Readiness, readiness
from finetune_agent.settings import Settings
from finetune_agent.state import Memory
from finetune_api.messages import DesiredState

API_KEY = "API_KEY"  # the key of the Secret that spec.target.apiKeySecretRef names


@dataclass
class Agent:
    """One running agent. ``wake`` ends the pause between two ticks, ``changed`` that between two reports.

    ``seen_at`` is when the engine was asked for ``view``, ``acted_at`` when a served name's last action ended (monotonic seconds): a
    view from before an action says nothing about what it did.
    """

    settings: Settings
    desired_file: DesiredFile
    memory: Memory = field(default_factory=Memory)
    engine: Engine | None = None
    engine_key: tuple[str, str, str | None] | None = None
    view: EngineView | None = None
    seen_at: float = 0.0
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    acted_at: dict[str, float] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    downloads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(max_workers=2, thread_name_prefix="download")
    )
    heartbeat: float = 0.0

    @property
    def desired(self) -> DesiredState | None:
        """What is wanted; None until it was read for the first time."""
        return self.desired_file.state

    def readiness(self, view: EngineView | None) -> Readiness:
        """Whether the pod may take traffic, with what the engine has just said."""
        return readiness(self.desired, self.settings.pod, view, self.memory, self.settings.adapters_directory)


def new_agent(settings: Settings) -> Agent:
    """An agent that knows nothing yet."""
    return Agent(settings, DesiredFile(settings.desired_file))


async def follow_engine(agent: Agent, desired: DesiredState) -> Engine:
    """The driver for the engine that is wanted now. The API key is read each time: a Secret may change."""
    key = (desired.engine, f"http://{agent.settings.engine_host}:{desired.port}", _api_key(agent, desired))
    if agent.engine is None or agent.engine_key != key:
        if agent.engine is not None:
            await agent.engine.close()
        agent.engine, agent.engine_key = open_engine(*key), key
    return agent.engine


def _api_key(agent: Agent, desired: DesiredState) -> str | None:
    if desired.api_key_secret is None:
        return None
    path = agent.settings.secrets_directory / desired.api_key_secret / API_KEY
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
