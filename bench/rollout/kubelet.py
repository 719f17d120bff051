"""Play the kubelet of all pods: bring the ConfigMap into them, and pass the answers of their probes on.

As a kubelet, it looks at the ConfigMap when the pod's annotation changes. What a real one needs to write the volume,
and the delay of its own watch, are left out.
"""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from bench.operator.at_once import follow
from bench.rollout.pods import Pod
from finetune_agent.state import version_for_pod
from finetune_api.messages import DESIRED_KEY, DesiredState
from finetune_api.timestamps import current_timestamp
from finetune_operator.resources.desired_state import STATE_ANNOTATION, compute_state_digest
from tools.testing.kubernetes_api import Api, Object

PROBE_SECONDS = 1.0
"""Period of the agent's readiness probe."""
THREADS = 4
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"


class Kubelet:
    """The kubelet of some pods, while a ``with`` block lasts.

    Attributes:
        given: When the ConfigMap first gave a version to a pod, in seconds of the epoch, by digest and pod.
    """

    def __init__(self, api: Api, config_map: str, pods: list[Pod]) -> None:
        """Choose the pods, and the name of the ConfigMap that they mount."""
        self.given: dict[tuple[str, str], float] = {}
        self._api, self._config_map = api, config_map
        self._pods = {pod.name: pod for pod in pods}
        self._annotations: dict[str, str] = {}
        self._text, self._digest = "", ""
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._probe_all, daemon=True)

    def __enter__(self) -> "Kubelet":
        """Start to watch and to probe."""
        namespace = [self._api.namespace]
        follow(self._api.core.list_namespaced_config_map, namespace, self._take_config_map)
        follow(self._api.core.list_namespaced_pod, namespace, self._take_pod)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the probes. The watches end with the process, and find no pod any more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._pool.shutdown()
        with self._lock:
            self._pods.clear()

    def _take_config_map(self, config_map: Object) -> None:
        if config_map["metadata"]["name"] != self._config_map:
            return
        now, text = time.time(), config_map["data"][DESIRED_KEY]
        adapters = DesiredState.model_validate_json(text).adapters
        with self._lock:
            self._text, self._digest = text, compute_state_digest(config_map)
            for name in self._pods:
                self._refresh(name)
                for version in (version_for_pod(adapter, name) for adapter in adapters):
                    if version is not None:
                        self.given.setdefault((version.digest, name), now)

    def _take_pod(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        with self._lock:
            if name in self._pods:
                self._annotations[name] = pod["metadata"].get("annotations", {}).get(STATE_ANNOTATION, "")
                self._refresh(name)

    def _refresh(self, name: str) -> None:
        """Write the pod's file if its annotation names the newest ConfigMap."""
        if self._digest and self._annotations.get(name) == self._digest:
            path = self._pods[name].desired_file
            path.with_suffix(".new").write_text(self._text)
            path.with_suffix(".new").rename(path)

    def _probe_all(self) -> None:
        asyncio.set_event_loop(self._loop)
        tasks = [self._loop.create_task(self._probe_each_second(pod)) for pod in self._pods.values()]
        self._loop.run_forever()
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _probe_each_second(self, pod: Pod) -> None:
        """Probe a pod, and write its status when the answer changes."""
        told: bool | None = None
        await asyncio.sleep(list(self._pods).index(pod.name) / len(self._pods) * PROBE_SECONDS)
        while True:
            ready = await _probe(pod)
            if ready != told:
                await self._loop.run_in_executor(self._pool, self._write_status, pod.name, ready)
                told = ready
            await asyncio.sleep(PROBE_SECONDS)

    def _write_status(self, name: str, ready: bool) -> None:
        status, now = str(ready), current_timestamp()
        conditions = [
            {"type": kind, "status": status, "lastTransitionTime": now} for kind in ("Ready", "ContainersReady")
        ]
        body = {"status": {"phase": "Running", "startTime": now, "conditions": conditions}}
        self._api.core.patch_namespaced_pod_status(name, self._api.namespace, body, _preload_content=False)


async def _probe(pod: Pod) -> bool:
    """Return whether the agent's readiness probe passes, asked by a new connection."""
    try:
        reader, writer = await asyncio.open_connection(pod.address, pod.agent_port)
    except OSError:
        return False
    with contextlib.closing(writer):
        writer.write(REQUEST)
        try:
            return (await reader.readline()).split()[1:2] == [b"200"]
        except OSError:
            return False
