"""A Git repository with manifests, served over HTTP by Git itself."""

import http.server
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.testing.http_server import serving

Object = dict[str, Any]
AUTHOR = {
    "GIT_AUTHOR_NAME": "a user",
    "GIT_AUTHOR_EMAIL": "user@example.com",
    "GIT_COMMITTER_NAME": "a user",
    "GIT_COMMITTER_EMAIL": "user@example.com",
    "GIT_CONFIG_GLOBAL": os.devnull,
}
NAME = "models.git"


class Repository:
    """A repository whose branch ``main`` a user edits."""

    def __init__(self, directory: Path) -> None:
        """Create an empty repository below the directory."""
        self.directory = directory
        self._work = directory / "work"
        self._git(directory, "init", "--quiet", "--bare", "--initial-branch=main", NAME)
        self._git(directory, "clone", "--quiet", str(directory / NAME), str(self._work))

    def commit(self, files: Mapping[str, Object | None], message: str) -> str:
        """Write these manifests, or remove those that are None; return the commit."""
        for name, content in files.items():
            file = self._work / name
            if content is None:
                file.unlink()
            else:
                file.write_text(json.dumps(content, indent=1))
        self._git(self._work, "add", "--all")
        self._git(self._work, "commit", "--quiet", "--message", message)
        return self._push()

    def revert(self) -> str:
        """Revert the last commit; return the new one."""
        self._git(self._work, "revert", "--no-edit", "HEAD")
        return self._push()

    def _push(self) -> str:
        self._git(self._work, "push", "--quiet", "origin", "HEAD:main")
        return self._git(self._work, "rev-parse", "HEAD").strip()

    def _git(self, directory: Path, *arguments: str) -> str:
        ran = subprocess.run(
            ["git", *arguments],
            cwd=directory,
            env={**os.environ, **AUTHOR},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve the repository during a ``with`` block; yields its URL."""
        with serving(type("GitHandler", (GitHandler,), {"root": self.directory})) as url:
            yield f"{url}/{NAME}"


class GitHandler(http.server.BaseHTTPRequestHandler):
    """Hand each request to ``git http-backend``, as a CGI program."""

    root: Path

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length") or 0)
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        ran = subprocess.run(
            ["git", "http-backend"], env=environment, input=self.rfile.read(length), capture_output=True, check=True
        )
        head, _, body = ran.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 -- http.server's names
