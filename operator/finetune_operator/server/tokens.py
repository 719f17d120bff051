"""Find the pod that a token belongs to: the API server reviews it, or its signature is checked here.

A TokenReview needs a permission for the whole cluster. An operator for some namespaces does not have it; it checks
tokens against the keys that the API server publishes to every service account.
"""

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import jwt

from finetune_api.messages import REPORT_AUDIENCE
from finetune_operator.kube.client import Kube
from finetune_operator.pod_reports import PodId

SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"

CONFIGURATION_PATH, KEYS_PATH = "/.well-known/openid-configuration", "/openid/v1/jwks"
"""By default every service account may read these (ClusterRole system:service-account-issuer-discovery)."""
ALGORITHMS = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512")
LEEWAY_SECONDS = 30
"""Allowed difference between the clocks of the API server and of the operator's node."""
KEYS_SECONDS, UNKNOWN_KEY_SECONDS = 3600.0, 10.0
"""Maximum age of the keys, and the age after which they are read again because of an unknown key."""
MAX_REVIEWS = 8
"""Maximum number of reviews at the same time, so that invented tokens cannot keep the API server busy."""

Identify = Callable[[str], Awaitable["PodId | Refusal"]]
"""Finds the pod of a token. Raises ``KubeError``."""


@dataclass(frozen=True)
class Refusal:
    """Why a token is not accepted."""

    message: str


INVALID = Refusal(f"the token is not valid for the audience {REPORT_AUDIENCE}: send the projected token of the pod")
UNBOUND = Refusal("the token is not bound to a pod: send the projected token of the pod")


class Tokens:
    """Identifies tokens, with a bounded cache of their hashes."""

    def __init__(
        self, identify: Identify, accepted_seconds: float = 60, refused_seconds: float = 10, size: int = 10_000
    ) -> None:
        """Set how long answers are remembered, and how many."""
        self._identify = identify
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
            answer = await self._identify(token)
        seconds = self._refused_seconds if isinstance(answer, Refusal) else self._accepted_seconds
        self._known.pop(digest, None)
        self._known[digest] = (now + seconds, answer)
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return answer


async def review(kube: Kube, token: str) -> PodId | Refusal:
    """Let the API server review a token. Raises ``KubeError``."""
    status = await kube.review_token(token, REPORT_AUDIENCE)
    if not status.get("authenticated") or REPORT_AUDIENCE not in status.get("audiences", []):
        return INVALID
    user = status.get("user", {})
    name = str(user.get("username", ""))
    extra = user.get("extra", {})
    pods, uids = extra.get(POD_NAME, []), extra.get(POD_UID, [])
    if not name.startswith(SERVICE_ACCOUNT_PREFIX) or len(pods) != 1 or len(uids) != 1:
        return UNBOUND
    namespace = name.removeprefix(SERVICE_ACCOUNT_PREFIX).split(":")[0]
    return namespace, str(pods[0]), str(uids[0])


class PublishedKeys:
    """Checks tokens by the keys and the issuer that the API server publishes (OpenID Connect discovery).

    A token stays valid here until it expires, also when its pod is gone: the caller checks that the pod exists.
    """

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        """Create it without keys; ``clock`` returns monotonic seconds."""
        self._kube, self._clock = kube, clock
        self._issuer = ""
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = -math.inf
        self._reading = asyncio.Lock()

    async def identify(self, token: str) -> PodId | Refusal:
        """Find the pod of a token. Raises ``KubeError``."""
        try:
            key = await self._find_key(str(jwt.get_unverified_header(token).get("kid")))
            if key is None:
                return INVALID
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=REPORT_AUDIENCE,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["aud", "exp", "iss"]},
            )
        except jwt.PyJWTError:
            return INVALID
        bound = claims.get("kubernetes.io") or {}
        pod = bound.get("pod") or {}
        if not all(isinstance(part, str) for part in (bound.get("namespace"), pod.get("name"), pod.get("uid"))):
            return UNBOUND
        return bound["namespace"], pod["name"], pod["uid"]

    async def _find_key(self, key_id: str) -> "jwt.PyJWK | None":
        """Return a key; read all keys again if they are old, or if this one is not known."""
        async with self._reading:
            age = self._clock() - self._read_at
            if age > KEYS_SECONDS or (key_id not in self._keys and age > UNKNOWN_KEY_SECONDS):
                self._issuer = str((await self._kube.discover(CONFIGURATION_PATH))["issuer"])
                published = await self._kube.discover(KEYS_PATH)
                self._keys = {str(key.key_id): key for key in jwt.PyJWKSet.from_dict(published).keys}
                self._read_at = self._clock()
        return self._keys.get(key_id)
