"""Calls to the API server: get, list, create, server-side apply, patch and delete, on plain dictionaries."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration

from finetune_operator.kube import errors
from finetune_operator.kube.kinds import FIELD_MANAGER, TOKEN_REVIEW, Kind, Object

TIMEOUT_SECONDS = 30
PAGE = 500
JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class Kube:
    """The Kubernetes API as the operator uses it. Every method raises ``KubeError`` for what it does not describe as a result."""

    def __init__(self, configuration: Configuration, observe: Callable[[str, str, float], None]) -> None:
        """``observe(verb, plural, seconds)`` is told of each call."""
        self.configuration = configuration
        self._api = ApiClient(configuration)
        self._api.user_agent = FIELD_MANAGER
        self._observe = observe

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object, or None if it is not there."""
        try:
            return await self._call("get", kind, "GET", kind.path(namespace, name))
        except errors.NotFoundError:
            return None

    async def list(self, kind: Kind, namespace: str | None, selector: str | None) -> tuple[list[Object], str]:
        """All objects of a kind (in one namespace, if one is given), and the resource version of the list."""
        items: list[Object] = []
        query: dict[str, Any] = {"limit": PAGE}
        if selector:
            query["labelSelector"] = selector
        while True:
            page = await self._call("list", kind, "GET", kind.path(namespace), query)
            items += page["items"]
            if not page["metadata"].get("continue"):
                return items, page["metadata"]["resourceVersion"]
            query["continue"] = page["metadata"]["continue"]

    async def create(self, kind: Kind, item: Object) -> Object:
        """Create an object. Raises ``AlreadyExistsError``, ``InvalidError``."""
        path = kind.path(item["metadata"].get("namespace"))
        return await self._call("create", kind, "POST", path, {"fieldManager": FIELD_MANAGER}, item)

    async def apply(self, kind: Kind, item: Object) -> Object:
        """Server-side apply, never with force. Raises ``ConflictError`` with the fields that another manager owns."""
        meta = item["metadata"]
        body = {"apiVersion": kind.api_version, "kind": kind.name, **item}
        path = kind.path(meta["namespace"], meta["name"])
        return await self._call("apply", kind, "PATCH", path, {"fieldManager": FIELD_MANAGER}, body, APPLY_PATCH)

    async def merge(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object | None:
        """JSON merge patch; None if the object is not there."""
        query = {"fieldManager": FIELD_MANAGER}
        try:
            return await self._call("patch", kind, "PATCH", kind.path(namespace, name), query, patch, MERGE_PATCH)
        except errors.NotFoundError:
            return None

    async def write_status(self, kind: Kind, item: Object, status: Object) -> Object | None:
        """Replace the status of the object that was read as ``item``; None if it is gone.

        Raises ``ConflictError`` if it changed since it was read: read it again, and decide again.
        """
        meta = item["metadata"]
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
        """Delete an object and, in the background, what it owns. False if it, or the one of this uid, is not there."""
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
        """The ``status`` of a TokenReview: who presents this token, if it is valid for the audience."""
        body = {
            "apiVersion": TOKEN_REVIEW.api_version,
            "kind": TOKEN_REVIEW.name,
            "spec": {"token": token, "audiences": [audience]},
        }
        review = await self._call("review", TOKEN_REVIEW, "POST", TOKEN_REVIEW.path(None), None, body)
        return dict(review.get("status") or {})

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
        loop = asyncio.get_running_loop()
        begin = loop.time()
        try:
            request = await self._api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": JSON, "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(*request, _request_timeout=TIMEOUT_SECONDS)
            content = await response.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.KubeError(call, 0, type(error).__name__, str(error), []) from error
        finally:
            self._observe(verb, kind.plural, loop.time() - begin)
        if response.status >= 300:
            raise errors.from_response(call, response.status, content)
        answer: Object = json.loads(content)
        return answer
