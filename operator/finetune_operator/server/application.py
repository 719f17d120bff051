"""Build the application of the HTTP server: its paths and their answers."""

import json
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError

from finetune_api.base import Lenient
from finetune_api.lenient import find_unstorable
from finetune_api.messages import AGENT_PATH, PROGRESS_PATH, AgentReport, ProgressReport, ReportAnswer
from finetune_api.validation import format_path
from finetune_operator.context import Context
from finetune_operator.kube.errors import KubeError
from finetune_operator.pod_reports import PodId
from finetune_operator.server.connections import Connections, LimitedSite, close_after_answer
from finetune_operator.server.forward import forward
from finetune_operator.server.receive import Rejected, receive_agent, receive_progress
from finetune_operator.server.tokens import Refusal, Tokens

MAX_BYTES = 256 * 1024
RETRY_AFTER_SECONDS = "2"
logger = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_application(context: Context, tokens: Tokens, find_fault: Callable[[], str | None]) -> web.Application:
    """Build the application; ``find_fault`` returns a text if the operator does not work, else None."""
    app = web.Application(client_max_size=MAX_BYTES)
    app.on_response_prepare.append(close_after_answer)

    def accept(path: str, model: type[Lenient], receive: Callable[..., Awaitable[None]]) -> None:
        async def post(request: web.Request) -> web.Response:
            if context.leadership.leads.is_set():
                status, message = await _answer(request, model, receive, context, tokens)
            else:
                status, message = await forward(request, context.leadership.leader_address)
            context.metrics.reports.labels(path, str(status)).inc()
            headers = {"Retry-After": RETRY_AFTER_SECONDS} if status == 503 else None
            body = ReportAnswer(accepted=status == 200, message=message).to_json()
            return web.json_response(body, status=status, headers=headers)

        app.router.add_post(path, post)

    accept(PROGRESS_PATH, ProgressReport, receive_progress)
    accept(AGENT_PATH, AgentReport, receive_agent)

    async def healthz(_: web.Request) -> web.Response:
        fault = find_fault()
        return web.Response(status=503 if fault else 200, text=fault or "ok")

    async def readyz(_: web.Request) -> web.Response:
        fault = find_unready(context)
        return web.Response(status=503 if fault else 200, text=fault or "ok")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(context.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


def find_unready(context: Context) -> str | None:
    """Return why this replica is not ready to work or to take over; None if it is ready."""
    if not context.synced.is_set():
        return "the first list of all objects is not complete"
    rival = context.leadership.rival
    return f"another installation, {rival}, works in the same namespaces" if rival else None


async def _answer(
    request: web.Request,
    model: type[Lenient],
    receive: Callable[[PodId, Lenient, Context], Awaitable[None]],
    context: Context,
    tokens: Tokens,
) -> tuple[int, str]:
    """Receive one report; return the HTTP status and the message of the answer."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        return 401, "no token: send the pod's projected token as Authorization: Bearer"
    try:
        pod = await tokens.find_pod(token.strip(), time.monotonic())
        if isinstance(pod, Refusal):
            return 401, pod.message
        content = await request.read()
        report = model.model_validate_json(content, extra="ignore")
        if unstorable := next(find_unstorable(json.loads(content)), None):
            return (
                422,
                f"{format_path(unstorable)} cannot be stored: send a finite number of at most 64 bits",
            )
        await receive(pod, report, context)
    except web.HTTPRequestEntityTooLarge:
        return 413, f"the report is larger than {MAX_BYTES} bytes"
    except ValidationError as error:
        first_error = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in first_error["loc"]) or "body"
        return 422, f"the body is not a {model.__name__}: {path}: {first_error['msg']}"
    except Rejected as error:
        return 403, str(error)
    except KubeError as error:
        logger.warning("Cannot check a report's token; the pod has to send the report again. %s", error)
        return 503, "the token could not be checked, because the API server failed: send the report again"
    return 200, ""


async def serve(
    app: web.Application, host: str, port: int, connections: Connections | None = None
) -> tuple[web.AppRunner, int]:
    """Listen; return the runner, which the caller has to clean up, and the port.

    ``connections`` limits the connections; None: the default limits.
    """
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await LimitedSite(runner, host, port, connections or Connections()).start()
    return runner, runner.addresses[0][1]
