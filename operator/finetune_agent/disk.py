"""Find the versions that an earlier run left on the shared volume, and delete those that nobody needs."""

import asyncio
import contextlib
import logging
import shutil
from pathlib import Path

from finetune_agent.agent import Agent
from finetune_agent.compatibility import IncompatibleError, check_adapter
from finetune_agent.paths import digest_of_path, names_on_disk
from finetune_api.manifest import MANIFEST_NAME
from finetune_api.messages import DesiredAdapter
from finetune_api.version_paths import adapter_directory, version_directory
from finetune_artifacts.digests import digest_of_file
from finetune_engines.base import Engine, EngineState

log = logging.getLogger(__name__)


def is_complete(directory: Path, digest: str) -> bool:
    """Return whether a directory holds the version: it appears with all files at once, and never changes."""
    manifest = directory / MANIFEST_NAME
    return manifest.is_file() and digest_of_file(manifest) == digest


def restore_versions(agent: Agent, engine: Engine) -> None:
    """Find the complete versions on the disk again, and delete partial downloads. The volume outlives the agent."""
    root = agent.settings.adapters_directory
    for name in names_on_disk(root):
        for directory in adapter_directory(root, name).iterdir():
            digest = f"sha256:{directory.name}"
            if directory.name.startswith("."):
                shutil.rmtree(directory, ignore_errors=True)
            elif is_complete(directory, digest):
                # an incompatible one is reported when it is desired
                with contextlib.suppress(IncompatibleError):
                    agent.memory.samples[name, digest] = check_adapter(directory, engine, None)


async def delete_unneeded_versions(
    agent: Agent, adapter: DesiredAdapter | None, name: str, engine_state: EngineState
) -> None:
    """Delete versions that nobody needs.

    Loaded versions stay, because the engine may read a directory again at any time. The version before the present one
    stays too, because a running request may still use it, and the one to which a rollback would go.

    Args:
        agent: The agent.
        adapter: The desired adapter; None if the adapter is to be removed.
        name: Its served name.
        engine_state: What the engine serves.
    """
    root = agent.settings.adapters_directory
    needed = {digest_of_path(root, path) for path in engine_state.adapters.values()}
    if adapter is not None:
        versions = [adapter.version, adapter.previous, adapter.last_good, *agent.memory.good_versions.get(name, [])]
        needed |= {version.digest for version in versions if version is not None}
    unneeded = [key for key in agent.memory.samples if key[0] == name and key[1] not in needed]
    for key in unneeded:
        await _delete(version_directory(root, name, key[1]))
        del agent.memory.samples[key]
    directory = adapter_directory(root, name)
    if adapter is None and directory.is_dir():
        await _delete(directory)


async def _delete(directory: Path) -> None:
    log.info("deleting %s", directory)
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
