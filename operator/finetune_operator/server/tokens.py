"""Find the pod that a token belongs to, by a TokenReview of the API server."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from finetune_api.messages import REPORT_AUDIENCE
from finetune_operator.kube.kinds import Object
from finetune_operator.pod_reports import PodId

SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"

MAX_REVIEWS = 8
"""Reviews at the same time, so that invented tokens cannot keep the API server busy."""

Review = Callable[[str, str], Awaitable[Object]]


@dataclass(frozen=True)
class Refusal:
    """Why a token is not accepted."""

    message: str


class TokenReviewer:
    """Reviews tokens, with a bounded cache of their hashes."""

    def __init__(
        self, review: Review, accepted_seconds: float = 60, refused_seconds: float = 10, size: int = 10_000
    ) -> None:
        """Set how long answers are remembered, and how many."""
        self._review = review
        self._accepted_seconds, self._refused_seconds, self._size = accepted_seconds, refused_seconds, size
        self._reviews = asyncio.Semaphore(MAX_REVIEWS)
        self._known: OrderedDict[bytes, tuple[float, PodId | Refusal]] = OrderedDict()

    async def find_pod(self, token: str, now: float) -> PodId | Refusal:
        """Find the pod that a token is bound to, at the monotonic time ``now``. Raises ``KubeError``."""
        digest = hashlib.sha256(token.encode()).digest()
        cached = self._known.get(digest)
        if cached is not None and cached[0] > now:
            return cached[1]
        async with self._reviews:
            answer = read_identity(await self._review(token, REPORT_AUDIENCE))
        seconds = self._refused_seconds if isinstance(answer, Refusal) else self._accepted_seconds
        self._known.pop(digest, None)
        self._known[digest] = (now + seconds, answer)
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return answer


def read_identity(status: Object) -> PodId | Refusal:
    """Read the pod from the ``status`` of a TokenReview."""
    if not status.get("authenticated") or REPORT_AUDIENCE not in status.get("audiences", []):
        return Refusal(
            f"the token is not valid for the audience {REPORT_AUDIENCE}: send the projected token of the pod"
        )
    user = status.get("user", {})
    name = str(user.get("username", ""))
    extra = user.get("extra", {})
    pods, uids = extra.get(POD_NAME, []), extra.get(POD_UID, [])
    if not name.startswith(SERVICE_ACCOUNT_PREFIX) or len(pods) != 1 or len(uids) != 1:
        return Refusal("the token is not bound to a pod: send the projected token of the pod")
    namespace = name.removeprefix(SERVICE_ACCOUNT_PREFIX).split(":")[0]
    return namespace, str(pods[0]), str(uids[0])
