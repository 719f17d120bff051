"""How the operator reaches the API server: from inside a pod by its service account, elsewhere by a kubeconfig."""

from pathlib import Path

from kubernetes.aio import config
from kubernetes.aio.client import Configuration

CONNECTIONS = 64


async def configuration(kubeconfig: Path | None) -> Configuration:
    """The client's configuration; inside a pod its token is read again every minute. Raises ConfigException when there is neither."""
    settings = Configuration()
    if kubeconfig is None:
        config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    else:
        await config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
    settings.connection_pool_maxsize = CONNECTIONS
    return settings


async def bearer_token(settings: Configuration) -> str | None:
    """The token to send now, without its scheme."""
    header = await settings.get_api_key_with_prefix("BearerToken", alias="authorization")
    return header.split(" ", 1)[-1].strip() if header else None
