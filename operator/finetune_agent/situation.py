"""Gather the situation of one adapter, on which the next action depends. It decides and changes nothing."""

from finetune_agent.agent import Agent
from finetune_agent.decide import Situation
from finetune_agent.drain import is_drained
from finetune_agent.paths import digest_of_path
from finetune_agent.reproof import is_due
from finetune_agent.state import VersionKey, list_fallbacks, version_for_pod
from finetune_api.messages import DesiredAdapter, DesiredVersion


def gather_situation(agent: Agent, adapter: DesiredAdapter | None, name: str, now: float) -> Situation:
    """Return the situation of an adapter.

    Args:
        agent: The agent.
        adapter: The desired adapter; None if the adapter is to be removed.
        name: Its served name.
        now: Monotonic seconds.
    """
    memory, root = agent.memory, agent.settings.adapters_directory
    target = version_for_pod(adapter, agent.settings.pod) if adapter else None
    fallbacks = list_fallbacks(memory, adapter, target) if adapter else []
    path = agent.engine_state.adapters.get(name) if agent.engine_state else None
    loaded_digest = digest_of_path(root, path) if path else None
    if loaded_digest and target and loaded_digest not in [version.digest for version in (target, *fallbacks)]:
        fallbacks.append(DesiredVersion(uri="", digest=loaded_digest))
    drain = memory.draining.get(name)
    version = memory.engine_version
    disturbs = version is not None and version.load_disturbs_requests
    needs_no_drain = adapter is not None and target is not None and not adapter.drain and not disturbs

    def is_ours(key: VersionKey) -> bool:
        return key[0] == name

    return Situation(
        served_name=name,
        root=root,
        target=target,
        # without an address, a version can be served only if it is on the disk
        fallbacks=tuple(version for version in fallbacks if version.uri or (name, version.digest) in memory.samples),
        engine=agent.engine_state,
        on_disk=frozenset(digest for _, digest in filter(is_ours, memory.samples)),
        bases_proven=frozenset(digest for _, digest in filter(is_ours, memory.base_logprobs)),
        proven=frozenset(memory.proven),
        refused={key[1]: fault for key, fault in memory.refused.items() if is_ours(key)},
        failed={key[1]: fault for key, fault in memory.failed.items() if is_ours(key)},
        drained=(drain is not None and is_drained(drain, now, agent.settings)) or needs_no_drain,
        engine_version=version,
        first_path=memory.first_paths.get(name),
        spoiled=frozenset(digest for _, digest in filter(is_ours, memory.spoiled)),
        due=adapter is not None and path is not None and is_due(memory, adapter, path, now),
        now=now,
    )
