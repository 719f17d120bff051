"""Make the few calls to an API server that bringing a cluster up needs, with the standard library alone."""

import http.client
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from devcluster.errors import DevClusterError

TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Api:
    """An API server: its URL, its CA certificate (PEM) and the bearer token to use."""

    server: str
    ca: str
    token: str

    def get(self, path: str) -> Any:
        """Return the object or list at `path`; None if there is none. Raises DevClusterError for any other error."""
        return self._request("GET", path)

    def apply(self, path: str, body: dict[str, Any]) -> Any:
        """Create or update the object at `path` by server-side apply."""
        return self._request(
            "PATCH", f"{path}?fieldManager=devcluster&force=true", body, "application/apply-patch+yaml"
        )

    def json_patch(self, path: str, operations: list[dict[str, Any]]) -> Any:
        """Change the object at `path` by a JSON patch."""
        return self._request("PATCH", path, operations, "application/json-patch+json")

    def delete(self, path: str) -> Any:
        """Delete the object at `path`; nothing when there is none."""
        return self._request("DELETE", path)

    def problem(self) -> str | None:
        """Return None if the API server is ready, else a text that says what is wrong."""
        return http_problem(f"{self.server}/readyz", ca=self.ca, token=self.token)

    def _request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        request = urllib.request.Request(
            f"{self.server}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.token}",
                "Content-Type": content_type,
                "Accept": "application/json",
            },
        )
        try:
            with _opener(self.ca).open(request, timeout=TIMEOUT_SECONDS) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            detail = error.read().decode(errors="replace")[:500]
            raise DevClusterError(f"the API server refused {method} {path}: {error.code} {detail}") from error
        except (OSError, http.client.HTTPException) as error:
            raise DevClusterError(f"the API server did not answer {method} {path}: {error}") from error


def http_problem(url: str, *, ca: str = "", token: str = "") -> str | None:
    """Return None if a GET of `url` is answered with 200, else a text that says what happened.

    Without `ca` the server's certificate is not checked, which suits health endpoints on this machine.
    """
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with _opener(ca).open(request, timeout=TIMEOUT_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}: {error.read().decode(errors='replace').strip()[-200:]}"
    except (OSError, http.client.HTTPException) as error:
        return f"{url} does not answer: {error}"


def is_ready(node: dict[str, Any]) -> bool:
    """Return whether a Node takes pods: it is Ready and has no taint."""
    conditions = node.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions) and not node[
        "spec"
    ].get("taints")


def _opener(ca: str) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cadata=ca) if ca else ssl._create_unverified_context()
    # Never through a proxy: everything we talk to is on this machine.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
