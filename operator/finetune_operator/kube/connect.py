"""Connect to the API server: in a pod by its service account, elsewhere by a kubeconfig."""

from pathlib import Path
from urllib.request import getproxies

from kubernetes.aio import config
from kubernetes.aio.client import Configuration

__all__ = ["Configuration", "NoClusterError", "load_configuration", "read_bearer_token"]
CONNECTIONS = 64


class NoClusterError(Exception):
    """No API server was found; the text says where the operator looked."""


async def load_configuration(kubeconfig: Path | None) -> Configuration:
    """Load the client's configuration. Raises ``NoClusterError``.

    In a pod the client reads the service account's token again every minute.
    """
    configuration = Configuration()
    try:
        await _load(configuration, kubeconfig)
    except config.ConfigException as error:
        raise NoClusterError(f"{kubeconfig or 'the pod'}: {error}") from error
    configuration.connection_pool_maxsize = CONNECTIONS
    # otherwise ~/.netrc and the environment are read for each request
    configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
    return configuration


async def _load(configuration: Configuration, kubeconfig: Path | None) -> None:
    if kubeconfig is None:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]


async def read_bearer_token(configuration: Configuration) -> str | None:
    """Read the token to send now, without its scheme."""
    header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
    return header.split(" ", 1)[-1].strip() if header else None
