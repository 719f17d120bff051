"""Serve a fake MLflow tracking server: the part of its REST interface that the client uses for one run."""

import http.server
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tools.testing.http_server import serving


@dataclass
class Server:
    """A fake server, with everything that clients sent to it."""

    uri: str
    experiments: list[str] = field(default_factory=list)
    runs: dict[str, dict[str, str]] = field(default_factory=dict)
    """Tags of each run."""
    states: list[str] = field(default_factory=list)
    """Each status that a run was given, in order of time."""
    metrics: list[tuple[str, int, float]] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)


@contextmanager
def running_mlflow() -> Iterator[Server]:
    """Run a server on loopback for the length of a ``with`` block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, request: dict[str, Any]) -> None:
            server.keys.add(self.headers.get("Authorization") or "")
            action = urlsplit(self.path).path.partition("/mlflow/")[2]
            answer: dict[str, Any] = {}
            match action:
                case "experiments/get-by-name":
                    if request["experiment_name"] not in server.experiments:
                        return self._send(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no experiment"})
                    answer = {"experiment": {"experiment_id": "1", "name": request["experiment_name"]}}
                case "experiments/create":
                    server.experiments.append(request["name"])
                    answer = {"experiment_id": "1"}
                case "runs/search":
                    tag = request["filter"].partition("= ")[2].strip("'")
                    names = [name for name, tags in server.runs.items() if tag in tags.values()]
                    answer = {"runs": [self._run(name) for name in names]}
                case "runs/create":
                    name = f"run-{len(server.runs) + 1}"
                    server.runs[name] = {tag["key"]: tag["value"] for tag in request["tags"]}
                    answer = {"run": self._run(name)}
                case "runs/update":
                    server.states.append(request["status"])
                    answer = {"run_info": self._run(request["run_id"])["info"]}
                case "runs/log-batch":
                    server.metrics += [
                        (m["key"], int(m["step"]), float(m["value"])) for m in request.get("metrics", [])
                    ]
                    server.parameters |= {p["key"]: p["value"] for p in request.get("params", [])}
                case "runs/get":
                    answer = {"run": self._run(request["run_id"])}
            return self._send(200, answer)

        def _run(self, name: str) -> dict[str, Any]:
            info = {"run_id": name, "run_uuid": name, "experiment_id": "1", "status": "RUNNING", "start_time": 1}
            return {"info": info, "data": {}}

        def _send(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as url:
        server = Server(url)
        yield server
