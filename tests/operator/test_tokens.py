"""Whose token it is: signature, issuer, audience and time are checked with the keys that the API server publishes."""

import asyncio
import time
from typing import Any, cast

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from finetune_api.messages import REPORT_AUDIENCE
from finetune_operator.kube.client import Kube
from finetune_operator.kube.kinds import Object
from finetune_operator.pod_reports import PodId
from finetune_operator.server.tokens import CONFIGURATION_PATH, INVALID, UNBOUND, PublishedKeys, Refusal, Tokens

ISSUER = "https://kubernetes.default.svc"
POD: PodId = ("team", "trainer", "uid-1")
OLD, NEW, FOREIGN = (rsa.generate_private_key(65537, 2048) for _ in range(3))


class Server:
    """Publishes an issuer and keys, as the API server does."""

    def __init__(self) -> None:
        """Begin with one key."""
        self.keys = {"old": OLD}
        self.read = 0
        self.now = 0.0

    async def discover(self, path: str) -> Object:
        """Return the document at a path."""
        if path == CONFIGURATION_PATH:
            return {"issuer": ISSUER}
        self.read += 1
        as_jwk = jwt.algorithms.RSAAlgorithm.to_jwk
        return {
            "keys": [
                {**as_jwk(key.public_key(), as_dict=True), "kid": name, "alg": "RS256"}
                for name, key in self.keys.items()
            ]
        }

    def published_keys(self) -> PublishedKeys:
        """Return what checks tokens against this server."""
        return PublishedKeys(cast(Kube, self), lambda: self.now)


def sign(claims: dict[str, Any] | None = None, key: rsa.RSAPrivateKey = OLD, key_id: str = "old") -> str:
    """Sign a token of the pod; its claims may be others, or None for none."""
    bound = {"namespace": POD[0], "pod": {"name": POD[1], "uid": POD[2]}, "serviceaccount": {"name": "default"}}
    usual = {"iss": ISSUER, "aud": [REPORT_AUDIENCE], "exp": time.time() + 600, "kubernetes.io": bound}
    content = {name: value for name, value in (usual | (claims or {})).items() if value is not None}
    return jwt.encode(content, key, "RS256", headers={"kid": key_id})


def test_a_pods_token_identifies_the_pod() -> None:
    assert asyncio.run(Server().published_keys().identify(sign())) == POD


@pytest.mark.parametrize(
    ("token", "refusal"),
    [
        (sign(key=FOREIGN), INVALID),
        (sign({"iss": "https://elsewhere"}), INVALID),
        (sign({"aud": ["another"]}), INVALID),
        (sign({"exp": time.time() - 60}), INVALID),
        (sign({"exp": None}), INVALID),
        (sign(key_id="unknown"), INVALID),
        ("a.b.c", INVALID),
        (jwt.encode({"iss": ISSUER, "aud": REPORT_AUDIENCE}, "", "none"), INVALID),
        (sign({"kubernetes.io": None}), UNBOUND),
        (sign({"kubernetes.io": {"namespace": "team", "serviceaccount": {"name": "default"}}}), UNBOUND),
    ],
    ids=["signature", "issuer", "audience", "expired", "endless", "key", "nonsense", "unsigned", "no pod", "account"],
)
def test_other_tokens_are_refused(token: str, refusal: Refusal) -> None:
    assert asyncio.run(Server().published_keys().identify(token)) == refusal


def test_a_new_key_is_found_and_unknown_ones_do_not_keep_the_api_server_busy() -> None:
    server = Server()
    keys = server.published_keys()
    assert asyncio.run(keys.identify(sign())) == POD
    for _ in range(5):
        asyncio.run(keys.identify(sign(key_id="invented")))
    assert server.read == 1
    server.keys["new"] = NEW
    server.now = 11
    assert asyncio.run(keys.identify(sign(key=NEW, key_id="new"))) == POD
    assert server.read == 2


def test_a_key_that_is_no_longer_published_is_forgotten() -> None:
    server = Server()
    keys = server.published_keys()
    asyncio.run(keys.identify(sign()))
    server.keys = {"new": NEW}
    server.now = 3601
    assert asyncio.run(keys.identify(sign())) == INVALID


def test_each_token_is_identified_once_while_its_answer_is_remembered() -> None:
    reviewed: list[str] = []

    async def identify(token: str) -> PodId | Refusal:
        reviewed.append(token)
        return POD if token == "good" else INVALID

    async def ask() -> None:
        tokens = Tokens(identify)
        for now in (0, 5, 9):
            assert await tokens.find_pod("good", now) == POD
            assert await tokens.find_pod("bad", now) == INVALID
        assert reviewed == ["good", "bad"]
        await tokens.find_pod("bad", 11)
        assert reviewed == ["good", "bad", "bad"]

    asyncio.run(ask())
