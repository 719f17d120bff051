"""How the operator reaches the API server: from inside a pod by its service account, elsewhere by a kubeconfig."""

from pathlib import Path

from kubernetes.aio import config
from kubernetes.aio.client import Configuration

__all__ = ["Configuration", "NoClusterError", "bearer_token", "configuration"]
CONNECTIONS = 64


class NoClusterError(Exception):
    """There is no API server to be found; the text says where was looked."""


async def configuration(kubeconfig: Path | None) -> Configuration:
    """The client's configuration; inside a pod its token is read again every minute. Raises ``NoClusterError``."""
    settings = Configuration()
    try:
        await _load(settings, kubeconfig)
    except config.ConfigException as error:
        raise NoClusterError(f"{kubeconfig or 'the pod'}: {error}") from error
    settings.connection_pool_maxsize = CONNECTIONS
    return settings


async def _load(settings: Configuration, kubeconfig: Path | None) -> None:
    if kubeconfig is None:
        config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    else:
        await config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]


async def bearer_token(settings: Configuration) -> str | None:
    """The token to send now, without its scheme."""
    header = await settings.get_api_key_with_prefix("BearerToken", alias="authorization")
    return header.split(" ", 1)[-1].strip() if header else None
