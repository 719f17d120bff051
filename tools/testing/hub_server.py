"""Serve a fake Hugging Face hub with models and datasets, among them gated and missing ones."""

import base64
import hashlib
import http.server
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tools.testing.http_server import serving

COMMIT = "1f0e2d3c4b5a69788796a5b4c3d2e1f001234567"
TOKEN, READ_TOKEN = "hf_goodtoken", "hf_readtoken"


@dataclass
class Hub:
    """A fake hub: its repositories as directories by ``org/name`` or ``datasets/org/name``, and what it received.

    ``gated`` repositories show their metadata but no file without ``TOKEN``. A dataset's card is the JSON in its
    ``card.json``.
    """

    endpoint: str
    repositories: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    pushed: dict[str, bytes] = field(default_factory=dict)
    """Content of each committed file, by repository and path."""
    visibilities: dict[str, str] = field(default_factory=dict)
    """Visibility of each repository that was created."""
    broken: bool = False
    """Refuse every commit."""
    sent_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes sent, by file name."""


def _describe_file(name: str, content: bytes) -> dict[str, Any]:
    """Describe a file as the hub does: weights lie in its large file storage."""
    entry = {"type": "file", "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), "path": name}
    large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry | {"size": len(content)} | ({"lfs": large} if name.endswith(".safetensors") else {})


@contextmanager
def running_hub(repositories: dict[str, Path], gated: set[str]) -> Iterator[Hub]:
    """Run a hub on loopback for the length of a ``with`` block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_POST(self) -> None:
            if "/paths-info/" in self.path:
                return self._answer(body=True)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = unquote(urlsplit(self.path).path)
            if (self.headers.get("Authorization") or "") != f"Bearer {TOKEN}":
                return self._send(401, b'{"error": "Invalid username or password."}', {}, body=True)
            if path == "/api/repos/create":
                request = json.loads(body)
                repo = f"{request['organization']}/{request['name']}"
                status = 409 if repo in hub.visibilities else 200
                hub.visibilities.setdefault(repo, request["visibility"])
                return self._json({"url": f"{hub.endpoint}/{repo}"}, status)
            if path == "/api/validate-yaml":
                return self._json({"errors": [], "warnings": []})
            repo, _, action = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
            if action == "preupload":
                files = [
                    {"path": item["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for item in json.loads(body)["files"]
                ]
                return self._json({"files": files})
            return self._commit(repo, [json.loads(line) for line in body.splitlines()])

        def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
            if hub.broken:
                return self._json({"error": "Not now"}, 422)
            for line in lines:
                if line["key"] == "file":
                    hub.pushed[f"{repo}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
            return self._json({"commitUrl": f"{hub.endpoint}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

        def _json(self, content: Any, status: int = 200) -> None:
            self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"}, body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token and token not in (TOKEN, READ_TOKEN):
                return self._send(401, b'{"error": "Invalid username or password."}', {}, body=body)
            if path == "/api/whoami-v2":
                role = "write" if token == TOKEN else "read"
                account = {"type": "user", "name": "someone", "auth": {"accessToken": {"role": role}}}
                return self._send(200, json.dumps(account).encode(), {"Content-Type": "application/json"}, body=body)
            for prefix, kind in (("/api/models/", ""), ("/api/datasets/", "datasets/")):
                if path.startswith(prefix):
                    rest = kind + path.removeprefix(prefix)
                    for part in ("/tree/", "/paths-info/"):
                        if part in rest:
                            return self._entries(rest.partition(part)[0], token, body=body)
                    repo, _, revision = rest.partition("/revision/")
                    return self._info(repo, revision, body=body)
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            return self._file(repo, revision, name, token, body=body)

        def _info(self, repo: str, revision: str, *, body: bool) -> None:
            if repo not in hub.repositories:
                return self._send(
                    401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, body=body
                )
            if revision not in ("", "main", "v1", COMMIT):
                return self._send(
                    404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, body=body
                )
            files = [{"rfilename": name} for name in self._names(repo)]
            card = hub.repositories[repo] / "card.json"
            name = repo.removeprefix("datasets/")
            content = json.dumps(
                {"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "private": False, "tags": []}
                | ({"cardData": json.loads(card.read_bytes())} if card.is_file() else {})
            )
            return self._send(200, content.encode(), {"Content-Type": "application/json"}, body=body)

        def _names(self, repo: str) -> list[str]:
            root = hub.repositories[repo]
            return sorted(entry.relative_to(root).as_posix() for entry in root.rglob("*") if entry.is_file())

        def _entries(self, repo: str, token: str, *, body: bool) -> None:
            requested_paths = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()).get(
                "paths"
            )
            entries = [
                _describe_file(name, (hub.repositories[repo] / name).read_bytes())
                for name in self._names(repo)
                if requested_paths is None or name in requested_paths
            ]
            return self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, body=body)

        def _file(self, repo: str, revision: str, name: str, token: str, *, body: bool) -> None:
            if repo in hub.gated and token != TOKEN:
                headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {repo} is restricted"}
                return self._send(403 if token else 401, b"{}", headers, body=body)
            path = hub.repositories[repo] / name
            if revision not in ("main", "v1", COMMIT) or not path.is_file():
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body=body)
            content = path.read_bytes()
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            span = self.headers.get("Range")
            if span is None:
                return self._send(200, content, headers, body=body, name=name)
            first, _, last = span.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            return self._send(206, part, headers, body=body, name=name)

        def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool, name: str = "") -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)
                hub.sent_bytes[name] = hub.sent_bytes.get(name, 0) + len(content)

    with serving(Handler) as url:
        hub = Hub(url, repositories, gated)
        yield hub
