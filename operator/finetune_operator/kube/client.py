"""Call the API server: get, list, create, server-side apply, patch and delete, on plain dictionaries."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from pydantic_core import from_json

from finetune_operator.kube import errors
from finetune_operator.kube.kinds import DISCOVERY, FIELD_MANAGER, LEASE, TOKEN_REVIEW, Kind, Object

TIMEOUT_SECONDS = 30
WATCH_SECONDS = 300
RECONNECT_SECONDS = (0.2, 0.5, 1, 2, 3, *(5,) * 720)
"""Seconds to wait after each further failure of a watch; after an hour of failures the operator is restarted."""
PAGE = 100
JSON = "application/json"
ACCEPTED = f"{JSON}, application/jwk-set+json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"


class Kube:
    """The Kubernetes API as the operator uses it.

    Every method raises ``KubeError`` for a call that failed.
    """

    def __init__(self, configuration: Configuration, on_call: Callable[[str, str, float], None]) -> None:
        """Connect; ``on_call(verb, plural, seconds)`` is called after each call."""
        self.configuration = configuration
        self._api = ApiClient(configuration)
        self._api.user_agent = FIELD_MANAGER
        self._on_call = on_call
        self.may_write: Callable[[], bool] = lambda: True
        """Whether this process may change objects; the Leases that decide it are always written."""

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Read an object; return None if it is not there."""
        try:
            return await self._call("get", kind, "GET", kind.path(namespace, name))
        except errors.NotFoundError:
            return None

    async def list_pages(
        self, kind: Kind, namespace: str | None, labels: str | None = None, fields: str | None = None
    ) -> AsyncIterator[tuple[list[Object], str]]:
        """List the objects of a kind page by page; yield each page with the list's resource version.

        A ``namespace`` of None means all. ``labels`` and ``fields`` are selectors.
        """
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        query: dict[str, Any] = {"limit": PAGE} | {name: value for name, value in selectors.items() if value}
        while True:
            page = await self._call("list", kind, "GET", kind.path(namespace), query)
            # the items of a list have no apiVersion and kind
            items = [{"apiVersion": kind.api_version, "kind": kind.name, **item} for item in page["items"]]
            yield items, page["metadata"]["resourceVersion"]
            if not page["metadata"].get("continue"):
                return
            query["continue"] = page["metadata"]["continue"]
            del page, items  # one page at a time

    async def list(
        self, kind: Kind, namespace: str | None, labels: str | None = None, fields: str | None = None
    ) -> tuple[list[Object], str]:
        """List the objects of a kind at once; return them and the list's resource version."""
        pages = [answer async for answer in self.list_pages(kind, namespace, labels, fields)]
        return [resource for page, _ in pages for resource in page], pages[-1][1]

    async def read_version(self, kind: Kind, namespace: str | None, labels: str | None = None) -> str:
        """Read the resource version that a list of a kind would have now."""
        query = {"limit": 1} | ({"labelSelector": labels} if labels else {})
        page = await self._call("list", kind, "GET", kind.path(namespace), query)
        version: str = page["metadata"]["resourceVersion"]
        return version

    async def watch(
        self, kind: Kind, namespace: str | None, version: str, labels: str | None = None
    ) -> AsyncIterator[tuple[str, Object]]:
        """Yield type and object of each event after a resource version, until the server ends the watch.

        Raises ``ExpiredError`` if the server no longer has the changes since this version.
        """
        call = f"watch {kind.path(namespace)}"
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        } | ({"labelSelector": labels} if labels else {})
        # a server that is silent for longer than its own timeout is gone
        limit = aiohttp.ClientTimeout(total=WATCH_SECONDS + TIMEOUT_SECONDS, sock_connect=TIMEOUT_SECONDS)
        try:
            answer = await self._send("GET", kind.path(namespace), query, limit=limit)
            async with answer.response as response:
                if response.status >= 300:
                    raise errors.from_response(call, response.status, await response.read())
                async for line in response.content:
                    event = from_json(line)
                    if event["type"] == "ERROR":
                        raise errors.from_status(call, event["object"].get("code", 0), event["object"])
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise errors.KubeError(call, 0, type(error).__name__, str(error), []) from error

    async def create(self, kind: Kind, resource: Object, dry_run: bool = False) -> Object:
        """Create an object, or with ``dry_run`` only have it checked.

        Raises ``AlreadyExistsError``, ``InvalidError``.
        """
        path = kind.path(resource["metadata"].get("namespace"))
        query = {"fieldManager": FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        return await self._call("create", kind, "POST", path, query, resource)

    async def apply(self, kind: Kind, resource: Object, force: bool = False) -> Object:
        """Apply an object on the server.

        Raises ``ConflictError`` with the fields that another manager owns, unless ``force`` takes them.
        """
        meta = resource["metadata"]
        body = {"apiVersion": kind.api_version, "kind": kind.name, **resource}
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        return await self._call(
            "apply", kind, "PATCH", kind.path(meta["namespace"], meta["name"]), query, body, APPLY_PATCH
        )

    async def replace(self, kind: Kind, resource: Object) -> Object:
        """Replace an object. Raises ``ConflictError`` if it is not the version that the resource names."""
        path = kind.path(resource["metadata"]["namespace"], resource["metadata"]["name"])
        return await self._call("replace", kind, "PUT", path, {"fieldManager": FIELD_MANAGER}, resource)

    async def merge(
        self, kind: Kind, namespace: str, name: str, patch: Object, content_type: str = MERGE_PATCH
    ) -> Object | None:
        """Patch an object with a JSON merge patch, or a strategic one; return None if it is not there."""
        query = {"fieldManager": FIELD_MANAGER}
        try:
            return await self._call("patch", kind, "PATCH", kind.path(namespace, name), query, patch, content_type)
        except errors.NotFoundError:
            return None

    async def write_status(self, kind: Kind, resource: Object, status: Object) -> Object | None:
        """Replace the status of an object, given as it was read; return None if it is gone.

        Raises ``ConflictError`` if it changed since it was read: then read it again and decide again.
        """
        meta = resource["metadata"]
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
            {"op": "add", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
            {"op": "add", "path": "/status", "value": status},
        ]
        path = kind.path(meta["namespace"], meta["name"], "status")
        try:
            return await self._call(
                "patch_status", kind, "PATCH", path, {"fieldManager": FIELD_MANAGER}, patch, JSON_PATCH
            )
        except errors.NotFoundError:
            return None

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> bool:
        """Delete an object and, in the background, what it owns.

        Returns False if the object, or the one with this uid, is not there.
        """
        body: Object = {"propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            await self._call("delete", kind, "DELETE", kind.path(namespace, name), None, body)
        except errors.NotFoundError:
            return False
        except errors.ConflictError:
            if uid is None:
                raise
            return False
        return True

    async def review_token(self, token: str, audience: str) -> Object:
        """Review a token for an audience; return the ``status`` of the TokenReview, which says whose it is."""
        body = {
            "apiVersion": TOKEN_REVIEW.api_version,
            "kind": TOKEN_REVIEW.name,
            "spec": {"token": token, "audiences": [audience]},
        }
        review = await self._call("review", TOKEN_REVIEW, "POST", TOKEN_REVIEW.path(None), None, body)
        return dict(review.get("status") or {})

    async def discover(self, path: str) -> Object:
        """Read a document that the API server shows to every client, for example its OpenID configuration."""
        return await self._call("get", DISCOVERY, "GET", path)

    async def _call(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content_type: str = JSON,
    ) -> Object:
        call = f"{verb} {path}"
        if method != "GET" and kind not in (LEASE, TOKEN_REVIEW) and not self.may_write():
            raise errors.KubeError(call, 0, "NotLeading", "not sent: another replica may work now", [])
        loop = asyncio.get_running_loop()
        begin = loop.time()
        try:
            response = await self._send(method, path, query, body, content_type)
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.KubeError(call, 0, type(error).__name__, str(error), []) from error
        finally:
            self._on_call(verb, kind.plural, loop.time() - begin)
        if response.status >= 300:
            raise errors.from_response(call, response.status, content)
        answer: Object = from_json(content)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Any = None,
        content_type: str = JSON,
        limit: float | aiohttp.ClientTimeout = TIMEOUT_SECONDS,
    ) -> Any:
        """Send a request with the current token; return its answer, of which only status and headers are read."""
        request = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": ACCEPTED, "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        return await self._api.call_api(*request, _request_timeout=limit)
