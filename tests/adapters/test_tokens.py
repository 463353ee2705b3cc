"""Tokens of an issuer on loopback: which are taken, and how often its keys are asked for."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms
from jwt.utils import base64url_encode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.server import LoopbackServer

from turnloom.adapters.guard import Guard
from turnloom.adapters.jwks import GOOD_FOR, PAUSE, Jwks
from turnloom.adapters.tokens import IssuedTokens
from turnloom.domain.errors import Unauthenticated, UpstreamBroken
from turnloom.testing import FrozenClock

AUDIENCE = "turnloom"
PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHER = ec.generate_private_key(ec.SECP256R1())


def jwk(private: Any, algorithm: str, key_id: str | None, **rest: Any) -> dict[str, Any]:
    """The public half of a key, as an issuer shows it."""
    shown = get_default_algorithms()[algorithm].to_jwk(private.public_key(), as_dict=True)
    return {**shown, **({"kid": key_id} if key_id else {}), **rest}


class Issuer:
    """An identity provider: shows `keys`, and counts how often it was asked for them."""

    def __init__(self) -> None:
        self.keys = [jwk(private, algorithm, algorithm) for algorithm, private in PRIVATE.items()]
        self.asked = 0
        self.broken = False
        self.says_it_is = ""
        routes = [Route("/.well-known/openid-configuration", self._configuration), Route("/keys", self._keys)]
        self._server = LoopbackServer(Starlette(routes=routes))

    def __enter__(self) -> Issuer:
        self._server.__enter__()
        self.says_it_is = self.url
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    @property
    def url(self) -> str:
        return self._server.url

    async def _configuration(self, _: Request) -> Response:
        return JSONResponse({"issuer": self.says_it_is, "jwks_uri": f"{self.url}/keys"})

    async def _keys(self, _: Request) -> Response:
        self.asked += 1
        return Response("no", 503) if self.broken else JSONResponse({"keys": self.keys})

    def token(self, algorithm: str = "ES256", *, key: Any = None, key_id: str | None = "", **changes: Any) -> str:
        """A token for alice; a claim that is changed to None is left out, as is the key id."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "iat": now, **changes}
        headers = {"kid": algorithm if key_id == "" else key_id}
        return jwt.encode(
            {name: value for name, value in claims.items() if value is not None},
            key or PRIVATE[algorithm],
            algorithm,
            headers={name: value for name, value in headers.items() if value is not None},
        )


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as made:
        yield made


class Checker:
    """What a deployment checks tokens with, on a clock that a test moves."""

    def __init__(self, issuer: Issuer, *audiences: str, url: str = "", guard: Guard | None = None) -> None:
        self.clock = FrozenClock()
        jwks = Jwks(guard or Guard(allow_loopback=True, https_only=True), self.clock, issuer.url, url)
        self._tokens = IssuedTokens(jwks, issuer.url, audiences or (AUDIENCE,), leeway=60)

    async def subject(self, token: str) -> Any:
        return (await self._tokens.claims(token))["sub"]

    async def refuses(self, token: str) -> bool:
        with pytest.raises(Unauthenticated):
            await self.subject(token)
        return True

    def advance(self, microseconds: int) -> None:
        self.clock.advance(microseconds / 1_000_000)


@pytest.fixture
def checker(issuer: Issuer) -> Checker:
    return Checker(issuer)


# --- which tokens are taken


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_a_token_by_a_key_of_the_issuer_is_taken(algorithm: str, issuer: Issuer, checker: Checker) -> None:
    assert await checker.subject(issuer.token(algorithm)) == "alice"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example"},
        {"iss": None},
        {"aud": "another"},
        {"aud": None},
        {"exp": None},
        {"exp": "soon"},
    ],
)
async def test_claims_that_do_not_hold_are_refused(changes: dict[str, Any], issuer: Issuer, checker: Checker) -> None:
    assert await checker.refuses(issuer.token(**changes))


@pytest.mark.parametrize(("claim", "seconds"), [("exp", -90), ("nbf", 3600), ("iat", 3600)])
async def test_a_token_is_refused_before_its_time_and_after(
    claim: str, seconds: int, issuer: Issuer, checker: Checker
) -> None:
    assert await checker.refuses(issuer.token(**{claim: int(time.time()) + seconds}))


@pytest.mark.parametrize(("claim", "seconds"), [("exp", -5), ("nbf", 30), ("iat", 30)])
async def test_clocks_may_differ_by_a_little(claim: str, seconds: int, issuer: Issuer, checker: Checker) -> None:
    assert await checker.subject(issuer.token(**{claim: int(time.time()) + seconds})) == "alice"


async def test_a_token_may_be_for_several_and_a_deployment_for_several(issuer: Issuer) -> None:
    checker = Checker(issuer, "one", "two")
    assert await checker.subject(issuer.token(aud=["two", "three"])) == "alice"
    assert await checker.refuses(issuer.token(aud=["three"]))


async def test_a_token_that_nobody_signed_is_refused_without_asking_the_issuer(
    issuer: Issuer, checker: Checker
) -> None:
    signed = issuer.token()
    unsigned = jwt.encode(jwt.decode(signed, options={"verify_signature": False}), None, "none", {"kid": "ES256"})
    assert await checker.refuses(unsigned)
    assert await checker.refuses(unsigned + signed.rpartition(".")[2])
    assert issuer.asked == 0


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
async def test_a_public_key_is_no_shared_secret(encoding: Encoding, issuer: Issuer, checker: Checker) -> None:
    secret = PRIVATE["RS256"].public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    claims = issuer.token().split(".")[1]
    # By hand: an honest library will not sign so.
    head = base64url_encode(b'{"alg":"HS256","kid":"RS256"}').decode()
    signature = hmac.digest(secret, f"{head}.{claims}".encode(), "sha256")
    assert await checker.refuses(f"{head}.{claims}.{base64url_encode(signature).decode()}")


async def test_a_shared_secret_that_an_issuer_shows_is_no_key(issuer: Issuer, checker: Checker) -> None:
    secret = b"s" * 32
    issuer.keys.append(get_default_algorithms()["HS256"].to_jwk(secret, as_dict=True) | {"kid": "shared"})
    assert await checker.refuses(issuer.token("HS256", key=secret, key_id="shared"))


async def test_a_signature_by_another_key_is_refused(issuer: Issuer, checker: Checker) -> None:
    assert await checker.refuses(issuer.token(key=OTHER))


async def test_a_key_is_good_for_its_own_algorithm_alone(issuer: Issuer, checker: Checker) -> None:
    assert await checker.refuses(issuer.token("ES256", key_id="RS256"))


async def test_a_key_that_encrypts_signs_nothing(issuer: Issuer, checker: Checker) -> None:
    issuer.keys = [
        jwk(PRIVATE["ES256"], "ES256", "ES256", use="enc"),
        jwk(PRIVATE["RS256"], "RS256", "RS256", use="sig"),
    ]
    assert await checker.refuses(issuer.token("ES256"))
    assert await checker.subject(issuer.token("RS256")) == "alice"


async def test_a_token_changed_after_it_was_signed_is_refused(issuer: Issuer, checker: Checker) -> None:
    head, _, signature = issuer.token().split(".")
    theirs = issuer.token(sub="bob").split(".")[1]
    assert await checker.refuses(f"{head}.{theirs}.{signature}")


async def test_an_extension_that_must_be_understood_is_refused(issuer: Issuer, checker: Checker) -> None:
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    headers = {"kid": "ES256", "crit": ["b65"], "b65": True}
    assert await checker.refuses(jwt.encode(claims, PRIVATE["ES256"], "ES256", headers))


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "....", "ä.b.c", "\udc80.b.c", "e30.e30.e30"])
async def test_what_is_no_token_is_refused(text: str, checker: Checker) -> None:
    assert await checker.refuses(text)


async def test_a_key_that_is_too_short_is_refused(issuer: Issuer, checker: Checker) -> None:
    short = rsa.generate_private_key(65537, 1024)
    issuer.keys = [jwk(short, "RS256", "RS256")]
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = issuer.token("RS256", key=short)
    assert await checker.refuses(token)


async def test_a_token_without_a_key_id_is_taken_where_there_is_one_key(issuer: Issuer, checker: Checker) -> None:
    assert await checker.subject(issuer.token(key_id=None)) == "alice"
    issuer.keys.append(jwk(OTHER, "ES256", "second"))
    checker.advance(GOOD_FOR)
    assert await checker.refuses(issuer.token(key_id=None))


# --- how often the issuer is asked


async def test_keys_are_asked_for_once_however_many_ask_at_once(issuer: Issuer, checker: Checker) -> None:
    names = await asyncio.gather(*(checker.subject(issuer.token(algorithm)) for algorithm in (*PRIVATE, *PRIVATE)))
    assert names == ["alice"] * 6
    assert issuer.asked == 1


async def test_a_new_key_is_found_when_a_token_brings_it(issuer: Issuer, checker: Checker) -> None:
    await checker.subject(issuer.token())
    issuer.keys.append(jwk(OTHER, "ES256", "next"))
    checker.advance(PAUSE)
    assert await checker.subject(issuer.token(key=OTHER, key_id="next")) == "alice"
    assert issuer.asked == 2


async def test_key_ids_that_are_made_up_do_not_have_the_issuer_asked_for_each(issuer: Issuer, checker: Checker) -> None:
    for number in range(5):
        assert await checker.refuses(issuer.token(key=OTHER, key_id=f"made-up-{number}"))
    assert issuer.asked == 1
    checker.advance(PAUSE)
    assert await checker.refuses(issuer.token(key=OTHER, key_id="made-up"))
    assert issuer.asked == 2


async def test_a_withdrawn_key_is_forgotten_once_keys_are_old(issuer: Issuer, checker: Checker) -> None:
    await checker.subject(issuer.token())
    issuer.keys = issuer.keys[:1]
    checker.advance(GOOD_FOR)
    assert await checker.refuses(issuer.token())


async def test_an_issuer_that_cannot_be_reached_leaves_its_keys_good(issuer: Issuer, checker: Checker) -> None:
    await checker.subject(issuer.token())
    issuer.broken = True
    checker.advance(GOOD_FOR)
    assert await checker.subject(issuer.token()) == "alice"
    assert await checker.subject(issuer.token()) == "alice"
    assert issuer.asked == 2


async def test_without_any_keys_it_is_not_the_token_that_is_at_fault(issuer: Issuer, checker: Checker) -> None:
    issuer.broken = True
    for _ in range(2):
        with pytest.raises(UpstreamBroken):
            await checker.subject(issuer.token())
    assert issuer.asked == 1
    issuer.broken = False
    checker.advance(PAUSE)
    assert await checker.subject(issuer.token()) == "alice"


# --- where the keys are


async def test_an_issuer_does_not_speak_for_another(issuer: Issuer, checker: Checker) -> None:
    issuer.says_it_is = "https://other.example"
    with pytest.raises(UpstreamBroken):
        await checker.subject(issuer.token())
    assert issuer.asked == 0


async def test_an_address_that_is_known_needs_no_discovery(issuer: Issuer) -> None:
    issuer.says_it_is = "https://other.example"
    checker = Checker(issuer, url=f"{issuer.url}/keys")
    assert await checker.subject(issuer.token()) == "alice"


async def test_a_deployment_reads_no_keys_from_within_its_network(issuer: Issuer) -> None:
    checker = Checker(issuer, guard=Guard(https_only=True))
    with pytest.raises(UpstreamBroken):
        await checker.subject(issuer.token())
    assert issuer.asked == 0


BROKEN: list[Any] = [7, {}, {"kty": "oct"}, {"kty": "RSA"}, {"kty": "EC", "crv": "P-256", "x": 7, "y": 8}]


async def test_a_key_that_cannot_be_read_does_not_cost_the_others(issuer: Issuer, checker: Checker) -> None:
    issuer.keys = [*BROKEN, *issuer.keys]
    assert await checker.subject(issuer.token()) == "alice"


@pytest.mark.parametrize("keys", [[], "none", BROKEN])
async def test_a_set_without_a_usable_key_is_no_set(keys: Any, issuer: Issuer, checker: Checker) -> None:
    issuer.keys = keys
    with pytest.raises(UpstreamBroken):
        await checker.subject(issuer.token())
