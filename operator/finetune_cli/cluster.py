"""Call the Kubernetes API with plain dictionaries, and turn its errors into sentences."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration

from finetune_api import GROUP, VERSION
from finetune_cli.errors import CliError

Object = dict[str, Any]
"""An API object as JSON."""

PLURALS = {"FineTuneJob": "finetunejobs", "AdapterDeployment": "adapterdeployments"}
KIND_WORDS = {
    "FineTuneJob": ("ftj", "finetunejob", "finetunejobs"),
    "AdapterDeployment": ("adp", "adapterdeployment", "adapterdeployments"),
}
"""Words for a kind that may precede a name and a slash, as with kubectl."""
FIELD_MANAGER = "finetune"
"""Owner of the fields that the command line writes. Its name must not begin with kubectl: Flux undoes such writes."""
POD_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
CONNECT_SECONDS = 10
READ_SECONDS = 60


class NotFoundError(CliError):
    """The object does not exist."""


class GoneError(CliError):
    """A watch cannot continue, so the objects must be listed again."""


@dataclass(frozen=True)
class Cluster:
    """A connection to an API server, and the default namespace."""

    api: ApiClient
    namespace: str

    def call(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Object | None = None
    ) -> Object:
        """Send one request. Raises CliError with the server's message, NotFoundError for a status of 404."""
        response = self._send(method, path, query, body)
        answer: Object = json.loads(response.data)
        return answer

    def patch(self, path: str, change: Object) -> Object:
        """Change fields of an object; the API server refuses a field that it does not know. Raises as ``call``."""
        query = {"fieldValidation": "Strict", "fieldManager": FIELD_MANAGER}
        response = self._send("PATCH", path, query, change, kind="application/merge-patch+json")
        changed: Object = json.loads(response.data)
        return changed

    def lines(self, path: str, query: Mapping[str, Any], read_seconds: int | None) -> Iterator[str]:
        """Yield the lines of an answer as they arrive: of a watch, or of a log. Raises as ``call``."""
        response = self._send("GET", path, query, None, read_seconds)
        rest = b""
        try:
            for block in response.stream(65536, decode_content=True):
                *complete, rest = (rest + block).split(b"\n")
                yield from (line.decode(errors="replace") for line in complete)
            if rest:
                yield rest.decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            raise GoneError(f"the connection to {self.api.configuration.host} broke: {error}") from error
        finally:
            response.close()

    def objects(self, kind: str, namespace: str | None) -> list[Object]:
        """List all objects of one of our kinds in a namespace; None: in all namespaces."""
        return cast(list[Object], self.call("GET", collection_path(kind, namespace))["items"])

    def object(self, kind: str, namespace: str, name: str) -> Object:
        """Read one object of ours. Raises NotFoundError."""
        return self.call("GET", object_path(kind, namespace, name))

    def find(self, reference: str) -> list[Object]:
        """Return the objects of a name: ``ftj/NAME``, ``adp/NAME``, or NAME for both kinds. Raises NotFoundError."""
        prefix, slash, name = reference.rpartition("/")
        kinds = [kind for kind, words in KIND_WORDS.items() if not slash or prefix.lower() in words]
        if not kinds:
            raise CliError(f"{reference!r}: there is no kind {prefix!r}; write ftj/{name} or adp/{name}")
        objects = []
        for kind in kinds:
            with contextlib.suppress(NotFoundError):
                objects.append({**self.object(kind, self.namespace, name), "kind": kind})
        if not objects:
            raise NotFoundError(f"there is no {' and no '.join(kinds)} {name!r} in namespace {self.namespace!r}")
        return objects

    def find_one(self, kind: str, reference: str) -> Object:
        """Return the object of this kind with a name, such as NAME or ``ftj/NAME``. Raises NotFoundError."""
        name = reference.rpartition("/")[2]
        for item in self.find(reference):
            if item["kind"] == kind:
                return item
        raise NotFoundError(f"there is no {kind} {name!r} in namespace {self.namespace!r}")

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Object | None,
        read_seconds: int | None = READ_SECONDS,
        kind: str = "application/json",
    ) -> urllib3.BaseHTTPResponse:
        request = self.api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": kind},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = self.api.call_api(*request, _request_timeout=(CONNECT_SECONDS, read_seconds))
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise CliError(f"cannot reach the API server at {self.api.configuration.host}: {reason}") from error
        response = cast(urllib3.BaseHTTPResponse, answer.response)
        if response.status >= 300:
            raise _error(response, path)
        return response


def connect(context: str | None, namespace: str | None) -> Cluster:
    """Connect to the cluster of the kubeconfig or, without one, to that of this pod. Raises CliError without both."""
    configuration = Configuration()
    try:
        if context is None and not _kubeconfig_is_there() and POD_NAMESPACE_FILE.is_file():
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            own_namespace = POD_NAMESPACE_FILE.read_text().strip()
        else:
            config.load_kube_config(context=context, client_configuration=configuration)  # type: ignore[no-untyped-call]
            own_namespace = _context_namespace(context)
    except config.ConfigException as error:
        raise CliError(
            f"no cluster: {str(error).rstrip('.')}. Set KUBECONFIG to your cluster's kubeconfig file"
        ) from error
    return Cluster(ApiClient(configuration), namespace or own_namespace)


def collection_path(kind: str, namespace: str | None) -> str:
    """Return the API path of one of our kinds."""
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{GROUP}/{VERSION}{scope}/{PLURALS[kind]}"


def object_path(kind: str, namespace: str, name: str) -> str:
    """Return the path of one object of ours."""
    return f"{collection_path(kind, namespace)}/{name}"


def _kubeconfig_is_there() -> bool:
    paths = config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION.split(":")
    return any(path and Path(path).expanduser().is_file() for path in paths)


def _context_namespace(context: str | None) -> str:
    contexts, current = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
    selected = next((item for item in contexts if item["name"] == context), current)
    return str(selected.get("context", {}).get("namespace") or "default")


def _error(response: urllib3.BaseHTTPResponse, path: str) -> CliError:
    text = response.data.decode(errors="replace")
    try:
        message = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        message = text.strip() or response.reason or ""
    # The server answers in JSON for an unknown kind, and with a plain page for an unknown group.
    unknown = message.startswith("the server could not find") or message == "404 page not found"
    if response.status == 404 and path.startswith(f"/apis/{GROUP}/") and unknown:
        raise CliError("finetune-operator is not installed in this cluster: its CRDs are missing (docs/install.md)")
    kinds = {404: NotFoundError, 410: GoneError}
    return kinds.get(response.status, CliError)(f"the API server answered {response.status}: {message}")
