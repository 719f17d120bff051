"""Run the agent's loop: inspect the desired state and the engine, then take one step for each adapter.

The loop is level-based: each tick looks at everything again, so that no event can be missed.
"""

import asyncio
import contextlib
import logging
import time

from finetune_agent.actions import carry_out
from finetune_agent.agent import Agent, connect_engine
from finetune_agent.decide import Action, Decision, decide
from finetune_agent.disk import delete_unneeded_versions, restore_versions
from finetune_agent.drain import has_left_service
from finetune_agent.paths import digest_of_path, names_on_disk, served_name_of_path
from finetune_agent.readiness import proven_digest
from finetune_agent.situation import gather_situation
from finetune_agent.state import AdapterState, Drain, is_replaced
from finetune_api.messages import DesiredAdapter, DesiredState
from finetune_engines import ENGINES
from finetune_engines.base import Driver, Engine, EngineError, EngineState, EngineUnreachableError

log = logging.getLogger(__name__)


async def run_loop(agent: Agent) -> None:
    """Tick until cancelled. Steps of different adapters run at the same time, those of one adapter in turn.

    While nothing is to be done, the loop reads the file of the desired state as often, but asks the engine more rarely:
    the readiness probe asks it each second, and wakes the loop when it serves something else.
    """
    try:
        while True:
            woken = agent.wake.is_set()
            agent.wake.clear()
            try:
                if _refresh_desired(agent) or woken or not agent.settled or _is_stale(agent):
                    await tick(agent)
            except Exception:  # the loop goes on: the next tick may succeed
                log.exception("a tick failed")
            agent.heartbeat = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(agent.wake.wait(), agent.settings.tick_seconds)
    finally:
        for task in agent.tasks.values():
            task.cancel()


async def tick(agent: Agent) -> None:
    """Inspect the engine once, and take one step for each adapter without a running action."""
    agent.settled = False
    desired = agent.desired
    if desired is None:
        return
    if not agent.restored:
        await asyncio.to_thread(restore_versions, agent, ENGINES[desired.engine])
        agent.restored = True
    await inspect_engine(agent, desired)
    await _check_drains(agent)
    adapters = {adapter.served_name: adapter for adapter in desired.adapters}
    for name in [*adapters, *_find_removed_names(agent, set(adapters))]:
        if name not in agent.tasks and agent.acted_at.get(name, 0.0) <= agent.inspected_at:
            await _step(agent, adapters.get(name), name)
    _update_required(agent, desired)
    memory = agent.memory
    agent.settled = agent.engine_state is not None and not (agent.tasks or memory.draining or memory.failed)


def _refresh_desired(agent: Agent) -> bool:
    """Read the file of the desired state, and return whether it changed."""
    changed = agent.desired_file.refresh()
    if changed:
        _forget_undesired(agent)
    return changed


def _is_stale(agent: Agent) -> bool:
    return time.monotonic() - agent.inspected_at >= agent.settings.idle_seconds


async def inspect_engine(agent: Agent, desired: DesiredState) -> None:
    """Ask the engine what it serves. If its process ended or is another one, forget what was proven."""
    driver = await connect_engine(agent, desired)
    agent.inspected_at = time.monotonic()
    try:
        state = await driver.inspect()
        await _notice_process(agent, driver, ENGINES[desired.engine], state)
    except EngineUnreachableError as error:
        if error.ended and agent.memory.identity:
            log.warning("the engine has ended")
        if error.ended:
            agent.memory.start_engine_process("", None)
        agent.engine_state = None
        return
    except EngineError as error:
        log.warning("%s", error.message)
        agent.engine_state = None
        return
    _notice_paths(agent, state)
    agent.engine_state = state


def _notice_paths(agent: Agent, state: EngineState) -> None:
    """Remember the path of each name, and count the served names that somebody else took from us."""
    memory, before = agent.memory, agent.engine_state.adapters if agent.engine_state else {}
    for name, path in state.adapters.items():
        if memory.first_paths.setdefault(name, path) != path:
            memory.first_paths[name] = ""
        replaced = is_replaced(memory.proven, agent.settings.adapters_directory, name, path)
        if replaced and before.get(name) != path:
            log.error("%s: somebody loaded %s under this name; ours is loaded and proven again", name, path)
            memory.replaced[name] = memory.replaced.get(name, 0) + 1
            agent.report_due.set()


async def _notice_process(agent: Agent, driver: Driver, engine: Engine, state: EngineState) -> None:
    """Ask a new process of the engine once for its version, and forget what the one before proved."""
    if state.identity == agent.memory.identity and agent.memory.engine_version is not None:
        return
    version = engine.judge_version(await driver.read_version())
    survivors = [(name, path) for name, path in agent.memory.proven if state.adapters.get(name) == path]
    agent.memory.start_engine_process(state.identity, version)
    # A process that woke from sleep still lists its adapters, but may have lost their weights.
    for name, path in survivors:
        digest = digest_of_path(agent.settings.adapters_directory, path)
        if digest is not None and served_name_of_path(agent.settings.adapters_directory, path) == name:
            agent.memory.spoiled.add((name, digest))
    agent.report_due.set()
    log.info(
        "%s %s answers: it serves %s",
        engine.title,
        version.version or "(unknown)",
        ", ".join([*state.bases, *state.adapters]),
    )
    for limit in version.limits:
        log.warning("%s: %s", engine.title, limit)


async def _step(agent: Agent, adapter: DesiredAdapter | None, name: str) -> None:
    """Decide and start the next action for one adapter."""
    situation = gather_situation(agent, adapter, name, time.monotonic())
    decision = decide(situation)
    _set_adapter_state(agent, name, decision)
    if not _keeps_drain(agent, name, decision.action):
        agent.memory.draining.pop(name, None)
    if decision.action is Action.NOTHING:
        if situation.engine is not None:
            await delete_unneeded_versions(agent, adapter, name, situation.engine)
    elif decision.action is Action.DRAIN:
        _start_drain(
            agent,
            name,
            leaves_service=situation.target is not None,
            of_all_adapters=_load_disturbs_requests(agent) and situation.target is not None,
        )
    else:
        _start_action(agent, adapter, name, decision)


def _keeps_drain(agent: Agent, name: str, action: Action) -> bool:
    """Return whether the drain of a name, if there is one, goes on during this action."""
    drain = agent.memory.draining.get(name)
    if action is Action.LOAD_CANDIDATE:
        return drain is not None and drain.of_all_adapters
    return action in (Action.DRAIN, Action.SWAP, Action.UNLOAD)


def _load_disturbs_requests(agent: Agent) -> bool:
    version = agent.memory.engine_version
    return version is not None and version.load_disturbs_requests


def _start_drain(agent: Agent, name: str, *, leaves_service: bool, of_all_adapters: bool) -> None:
    if name not in agent.memory.draining:
        log.info("%s: draining%s", name, ", the pod leaves the Service" if leaves_service else "")
        agent.memory.draining[name] = Drain(time.monotonic(), leaves_service, of_all_adapters=of_all_adapters)


def _start_action(agent: Agent, adapter: DesiredAdapter | None, name: str, decision: Decision) -> None:
    task = asyncio.create_task(carry_out(agent, adapter, name, decision))
    agent.tasks[name] = task

    def finish(_: asyncio.Task[None]) -> None:
        agent.tasks.pop(name, None)
        agent.acted_at[name] = time.monotonic()
        agent.wake.set()

    task.add_done_callback(finish)


async def _check_drains(agent: Agent) -> None:
    """Count how often in a row a draining name had no request. If the engine fails, the longest wait applies."""
    now = time.monotonic()
    drains = {
        name: drain for name, drain in agent.memory.draining.items() if has_left_service(drain, now, agent.settings)
    }
    if not drains or agent.driver is None:
        return
    try:
        busy = await agent.driver.busy_adapters()
    except EngineError:
        return
    for name, drain in drains.items():
        waits = bool(busy) if drain.of_all_adapters else name in busy
        drain.idle_checks = 0 if waits else drain.idle_checks + 1


def _find_removed_names(agent: Agent, desired_names: set[str]) -> list[str]:
    """Return served names of ours in the engine or on the disk that are not desired any more."""
    root = agent.settings.adapters_directory
    loaded_paths = agent.engine_state.adapters if agent.engine_state else {}
    loaded_names = {name for path in loaded_paths.values() if (name := served_name_of_path(root, path)) is not None}
    return sorted((loaded_names | set(names_on_disk(root))) - desired_names)


def _forget_undesired(agent: Agent) -> None:
    """Forget refusals and failures of versions that are not desired any more, and adapters that are gone."""
    desired, memory = agent.desired, agent.memory
    if desired is None:
        return
    keys = {
        (adapter.served_name, version.digest)
        for adapter in desired.adapters
        for version in (adapter.version, adapter.previous, *memory.good_versions.get(adapter.served_name, []))
        if version is not None
    }
    names = {adapter.served_name for adapter in desired.adapters}
    memory.refused = {key: fault for key, fault in memory.refused.items() if key in keys}
    memory.failed = {key: fault for key, fault in memory.failed.items() if key in keys}
    memory.started_at = {key: at for key, at in memory.started_at.items() if key in keys}
    memory.load_seconds = {key: seconds for key, seconds in memory.load_seconds.items() if key in keys}
    memory.good_versions = {name: versions for name, versions in memory.good_versions.items() if name in names}
    memory.adapter_states = {name: state for name, state in memory.adapter_states.items() if name in names}
    agent.report_due.set()


def _set_adapter_state(agent: Agent, name: str, decision: Decision) -> None:
    state = AdapterState(decision.state, decision.reason, decision.message)
    if agent.memory.adapter_states.get(name) != state:
        agent.memory.adapter_states[name] = state
        agent.report_due.set()


def _update_required(agent: Agent, desired: DesiredState) -> None:
    """Once the pod was ready, require each adapter that was proven on it, and no other."""
    memory, state = agent.memory, agent.engine_state
    if state is None:
        return
    if memory.required is None and not agent.judge_readiness(state).ready:
        return
    names = [adapter.served_name for adapter in desired.adapters]
    proven = {name for name in names if proven_digest(memory, state, agent.settings.adapters_directory, name)}
    memory.required = ((memory.required or set()) & set(names)) | proven
