"""The level-based loop: look at what is wanted and what is there, take one step for each adapter, look again."""

import asyncio
import contextlib
import logging
import shutil
import time
from pathlib import Path

from finetune_agent.agent import Agent, follow_engine
from finetune_agent.compatibility import IncompatibleError, check_files
from finetune_agent.decide import Decision, Do, Situation, decide
from finetune_agent.drain import drained, out_of_service
from finetune_agent.engines.base import EngineError, EngineUnreachableError
from finetune_agent.fetch import is_whole
from finetune_agent.paths import adapter_directory, digest_of_path, names_on_disk, served_name_of, version_directory
from finetune_agent.readiness import proven_digest
from finetune_agent.state import Drain, Standing, fallbacks_of, version_of
from finetune_agent.work import carry_out
from finetune_api.messages import DesiredAdapter, DesiredState, DesiredVersion

log = logging.getLogger(__name__)


async def run(agent: Agent) -> None:
    """Tick until cancelled. The steps of different adapters run side by side, those of one after another."""
    await asyncio.to_thread(restore, agent)
    try:
        while True:
            agent.wake.clear()
            try:
                await tick(agent)
            except Exception:  # the loop lives: what is wrong now may be right at the next tick
                log.exception("a tick failed")
            agent.heartbeat = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(agent.wake.wait(), agent.settings.tick_seconds)
    finally:
        for task in agent.tasks.values():
            task.cancel()
        agent.downloads.shutdown(wait=False, cancel_futures=True)


def restore(agent: Agent) -> None:
    """Find again what lies on the disk: the volume outlives the agent. Half a download of an earlier run is removed."""
    root = agent.settings.adapters_directory
    for name in names_on_disk(root):
        for directory in adapter_directory(root, name).iterdir():
            digest = f"sha256:{directory.name}"
            if directory.name.startswith("."):
                shutil.rmtree(directory, ignore_errors=True)
            elif is_whole(directory, digest):
                with contextlib.suppress(IncompatibleError):  # it is told when it is wanted
                    agent.memory.checked[name, digest] = check_files(directory, None)


async def tick(agent: Agent) -> None:
    """One look and one step for each adapter that has none under way."""
    if agent.desired_file.refresh():
        _forget_unwanted(agent)
    desired = agent.desired
    if desired is None:
        return
    await observe(agent, desired)
    await _watch_drains(agent)
    wanted = {adapter.served_name: adapter for adapter in desired.adapters}
    for name in [*wanted, *_strays(agent, wanted)]:
        if name not in agent.tasks and agent.acted_at.get(name, 0.0) <= agent.seen_at:
            await _step(agent, wanted.get(name), name)
    _note_readiness(agent)


async def observe(agent: Agent, desired: DesiredState) -> None:
    """Ask the engine what it has. Another process of it, or none, ends all that was proven."""
    engine = await follow_engine(agent, desired)
    agent.seen_at = time.monotonic()
    try:
        view = await engine.view()
    except EngineUnreachableError as error:
        if error.gone and agent.memory.identity:
            log.warning("the engine has ended")
        if error.gone:
            agent.memory.forget_engine("")
        agent.view = None
        return
    except EngineError as error:
        log.warning("%s", error.message)
        agent.view = None
        return
    if view.identity != agent.memory.identity:
        log.info("the engine is there: it serves %s", ", ".join([*view.bases, *view.adapters]))
        agent.memory.forget_engine(view.identity)
    agent.view = view


async def _step(agent: Agent, adapter: DesiredAdapter | None, name: str) -> None:
    situation = _situation(agent, adapter, name)
    decision = decide(situation)
    _stand(agent, name, decision)
    if decision.do not in (Do.DRAIN, Do.SWAP, Do.UNLOAD):
        agent.memory.draining.pop(name, None)
    if decision.do is Do.NOTHING:
        await _tidy(agent, adapter, name, situation)
    elif decision.do is Do.DRAIN:
        if name not in agent.memory.draining:
            leaves = situation.target is not None
            log.info("%s: draining%s", name, ", the pod leaves the Service" if leaves else "")
            agent.memory.draining[name] = Drain(time.monotonic(), leaves)
    else:
        task = asyncio.create_task(carry_out(agent, adapter, name, decision))
        agent.tasks[name] = task

        def done(_: asyncio.Task[None]) -> None:
            agent.tasks.pop(name, None)
            agent.acted_at[name] = time.monotonic()
            agent.wake.set()

        task.add_done_callback(done)


def _situation(agent: Agent, adapter: DesiredAdapter | None, name: str) -> Situation:
    memory, root, now = agent.memory, agent.settings.adapters_directory, time.monotonic()
    target = version_of(adapter, agent.settings.pod) if adapter else None
    fallbacks = fallbacks_of(memory, adapter, target) if adapter else []
    path = agent.view.adapters.get(name) if agent.view else None
    served = digest_of_path(root, path) if path else None
    if served and target and served not in [version.digest for version in (target, *fallbacks)]:
        fallbacks.append(DesiredVersion(uri="", digest=served))
    drain = memory.draining.get(name)
    return Situation(
        served_name=name,
        root=root,
        target=target,
        fallbacks=tuple(version for version in fallbacks if version.uri or (name, version.digest) in memory.checked),
        engine=agent.view,
        on_disk=frozenset(digest for known, digest in memory.checked if known == name),
        bases_proven=frozenset(digest for known, digest in memory.bases_proven if known == name),
        proven=frozenset(memory.proven),
        refused={digest: fault for (known, digest), fault in memory.refused.items() if known == name},
        failed={digest: fault for (known, digest), fault in memory.failed.items() if known == name},
        drained=(drain is not None and drained(drain, now, agent.settings))
        or (adapter is not None and target is not None and not adapter.drain),
        now=now,
    )


async def _watch_drains(agent: Agent) -> None:
    """Count how often in a row a draining name had no request. An engine that cannot tell is waited for until the time is up."""
    now = time.monotonic()
    waiting = {
        name: drain for name, drain in agent.memory.draining.items() if out_of_service(drain, now, agent.settings)
    }
    if not waiting or agent.engine is None:
        return
    try:
        busy = await agent.engine.busy()
    except EngineError:
        return
    for name, drain in waiting.items():
        drain.quiet_checks = 0 if name in busy else drain.quiet_checks + 1


def _strays(agent: Agent, wanted: dict[str, DesiredAdapter]) -> list[str]:
    """Served names of ours that nobody wants any more: in the engine, or on the disk."""
    root = agent.settings.adapters_directory
    loaded = agent.view.adapters if agent.view else {}
    ours = {served_name_of(name) for name, path in loaded.items() if digest_of_path(root, path)}
    return sorted((ours | set(names_on_disk(root))) - set(wanted))


async def _tidy(agent: Agent, adapter: DesiredAdapter | None, name: str, situation: Situation) -> None:
    """Remove versions that nobody needs. What the engine has registered stays, and so does the version before the present one:
    the engine may read a directory again at any time, and a request in flight may still be on the older one.
    """
    if situation.engine is None:
        return
    root = agent.settings.adapters_directory
    needed = {digest_of_path(root, path) for path in situation.engine.adapters.values()}
    if adapter is not None:
        versions = [adapter.version, adapter.previous, *agent.memory.good.get(name, [])]
        needed |= {version.digest for version in versions if version is not None}
    gone = [key for key in agent.memory.checked if key[0] == name and key[1] not in needed]
    for key in gone:
        await _remove(agent, version_directory(root, name, key[1]))
        del agent.memory.checked[key]
    directory = adapter_directory(root, name)
    if adapter is None and directory.is_dir():
        await _remove(agent, directory)


async def _remove(agent: Agent, directory: Path) -> None:
    log.info("removing %s", directory)
    await asyncio.get_running_loop().run_in_executor(
        agent.downloads, lambda: shutil.rmtree(directory, ignore_errors=True)
    )


def _forget_unwanted(agent: Agent) -> None:
    """Refusals and failures last until another version is wanted; adapters that are gone are forgotten."""
    desired = agent.desired
    memory = agent.memory
    if desired is None:
        return
    wanted = {
        (adapter.served_name, version.digest)
        for adapter in desired.adapters
        for version in (adapter.version, adapter.previous, *memory.good.get(adapter.served_name, []))
        if version is not None
    }
    names = {adapter.served_name for adapter in desired.adapters}
    memory.refused = {key: fault for key, fault in memory.refused.items() if key in wanted}
    memory.failed = {key: fault for key, fault in memory.failed.items() if key in wanted}
    memory.started = {key: at for key, at in memory.started.items() if key in wanted}
    memory.load_seconds = {key: seconds for key, seconds in memory.load_seconds.items() if key in wanted}
    memory.good = {name: versions for name, versions in memory.good.items() if name in names}
    memory.standings = {name: standing for name, standing in memory.standings.items() if name in names}
    agent.changed.set()


def _stand(agent: Agent, name: str, decision: Decision) -> None:
    standing = Standing(decision.state, decision.reason, decision.message)
    if agent.memory.standings.get(name) != standing:
        agent.memory.standings[name] = standing
        agent.changed.set()


def _note_readiness(agent: Agent) -> None:
    """From its first readiness on, the pod owes each adapter that was proven on it, and no other."""
    memory, view, desired = agent.memory, agent.view, agent.desired
    if view is None or desired is None:
        return
    if memory.owed is None and not agent.readiness(view).ready:
        return
    names = [adapter.served_name for adapter in desired.adapters]
    proven = {name for name in names if proven_digest(memory, view, agent.settings.adapters_directory, name)}
    memory.owed = ((memory.owed or set()) & set(names)) | proven
