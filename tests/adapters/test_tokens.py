"""Tokens of an issuer on loopback: which are taken, and how often its keys are asked for."""

from __future__ import annotations

import asyncio
import gzip
import hmac
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms
from jwt.utils import base64url_decode, base64url_encode, raw_to_der_signature
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.server import LoopbackServer
from tests.upstream import Gate

from turnloom.adapters.guard import Guard
from turnloom.adapters.jwks import GOOD_FOR, KEPT_FOR, PAUSE, SHORT_PAUSE, Jwks
from turnloom.adapters.tokens import IssuedTokens
from turnloom.domain.errors import Unauthenticated, UpstreamBroken
from turnloom.testing import FrozenClock
from turnloom.usecases.authorization import Authorization, Trust
from turnloom.wire.authorizer import Unauthorized, policy

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
        routes = [Route("/.well-known/openid-configuration", self._configuration), Route("/keys", self._keys)]
        self._server = LoopbackServer(Starlette(routes=routes))
        self.gate: Gate | None = None
        self.begin()

    def begin(self) -> None:
        """Be as if nobody had asked yet."""
        self.keys = [jwk(private, algorithm, algorithm) for algorithm, private in PRIVATE.items()]
        self.asked = 0
        self.broken = False
        self.content: Response | None = None
        self.says_it_is = self.url
        if self.gate:
            self.gate.open()
        self.gate = None

    def __enter__(self) -> Issuer:
        self._server.__enter__()
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
        if self.gate:
            self.gate.reached.set()
            await self.gate.opened.wait()
        if self.broken:
            return Response("no", 503)
        return self.content or JSONResponse({"keys": self.keys})

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


@pytest.fixture(scope="module")
def served() -> Iterator[Issuer]:
    with Issuer() as made:
        yield made


@pytest.fixture
def issuer(served: Issuer) -> Iterator[Issuer]:
    served.begin()
    yield served
    served.begin()


class Checker:
    """What a deployment checks tokens with, on a clock that a test moves."""

    def __init__(self, issuer: Issuer, *audiences: str, url: str = "", guard: Guard | None = None) -> None:
        self.clock = FrozenClock()
        jwks = Jwks(guard or Guard(allow_loopback=True, https_only=True), self.clock, issuer.url, url)
        self._tokens = IssuedTokens(jwks, issuer.url, audiences or (AUDIENCE,), leeway=60)
        self._authorization = Authorization(trust=Trust(self._tokens, issuer.url))

    async def subject(self, token: str) -> Any:
        return (await self._tokens.claims(token))["sub"]

    async def policy(self, token: str) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        return await policy(self._authorization, {"methodArn": "arn/live/GET/x", "headers": headers})

    async def lets_nobody_in(self, token: str) -> bool:
        with pytest.raises(Unauthenticated):
            await self._authorization.identify(f"Bearer {token}")
        return True

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


def segment(content: Any) -> str:
    """A part of a token: bytes as they are, anything else as JSON."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64url_encode(raw).decode()


def signed(issuer: Issuer, head: Any = None, claims: Any = None, *, algorithm: str = "ES256", key: Any = None) -> str:
    """A token of any header and any claims, by hand, since an honest library signs not everything."""
    now = int(time.time())
    usual = {"iss": issuer.url, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "iat": now}
    head = {"alg": "ES256", "kid": "ES256"} if head is None else head
    text = f"{segment(head)}.{segment(usual if claims is None else claims)}"
    maker = get_default_algorithms()[algorithm]
    return f"{text}.{segment(maker.sign(text.encode(), maker.prepare_key(key or PRIVATE[algorithm])))}"


def test_token_by_hand_is_a_good_one_before_it_is_made_a_bad_one(issuer: Issuer, checker: Checker) -> None:
    assert asyncio.run(checker.subject(signed(issuer))) == "alice"


HEADERS: dict[str, Any] = {
    "alg-none": {"alg": "none", "kid": "ES256"},
    "alg-None": {"alg": "None", "kid": "ES256"},
    "alg-NONE": {"alg": "NONE", "kid": "ES256"},
    "alg-nOnE": {"alg": "nOnE", "kid": "ES256"},
    "alg-empty": {"alg": "", "kid": "ES256"},
    "alg-missing": {"kid": "ES256"},
    "alg-null": {"alg": None, "kid": "ES256"},
    "alg-number": {"alg": 256, "kid": "ES256"},
    "alg-list": {"alg": ["ES256"], "kid": "ES256"},
    "alg-object": {"alg": {"ES256": 1}, "kid": "ES256"},
    "alg-lower": {"alg": "es256", "kid": "ES256"},
    "alg-mixed": {"alg": "Es256", "kid": "ES256"},
    "alg-space": {"alg": "ES256 ", "kid": "ES256"},
    "alg-nul": {"alg": "ES256\0", "kid": "ES256"},
    "alg-HS256": {"alg": "HS256", "kid": "ES256"},
    "alg-HS512": {"alg": "HS512", "kid": "ES256"},
    "alg-RS256": {"alg": "RS256", "kid": "ES256"},
    "alg-RS256-own-kid": {"alg": "RS256", "kid": "RS256"},
    "alg-PS256": {"alg": "PS256", "kid": "RS256"},
    "alg-ES384": {"alg": "ES384", "kid": "ES256"},
    "alg-EdDSA": {"alg": "EdDSA", "kid": "EdDSA"},
    "alg-twice": b'{"alg":"ES256","kid":"ES256","alg":"none"}',
    "kid-unknown": {"alg": "ES256", "kid": "other"},
    "kid-other": {"alg": "ES256", "kid": "RS256"},
    "kid-empty": {"alg": "ES256", "kid": ""},
    "kid-null": {"alg": "ES256", "kid": None},
    "kid-number": {"alg": "ES256", "kid": 7},
    "kid-list": {"alg": "ES256", "kid": ["ES256"]},
    "kid-path": {"alg": "ES256", "kid": "../../../../dev/null"},
    "kid-sql": {"alg": "ES256", "kid": "x' UNION SELECT 'secret"},
    "kid-nul": {"alg": "ES256", "kid": "ES256\0"},
    "kid-url": {"alg": "ES256", "kid": "http://127.0.0.1:1/keys"},
    "kid-surrogate": b'{"alg":"ES256","kid":"\\ud800"}',
    "kid-long": {"alg": "ES256", "kid": "x" * 7000},
    "kid-twice": b'{"alg":"ES256","kid":"ES256","kid":"other"}',
    "crit": {"alg": "ES256", "kid": "ES256", "crit": ["exp"]},
    "crit-unknown": {"alg": "ES256", "kid": "ES256", "crit": ["x"], "x": 1},
    "crit-empty": {"alg": "ES256", "kid": "ES256", "crit": []},
    "crit-text": {"alg": "ES256", "kid": "ES256", "crit": "b64"},
    "crit-number": {"alg": "ES256", "kid": "ES256", "crit": [7]},
    "crit-null": {"alg": "ES256", "kid": "ES256", "crit": None},
    "b64-false": {"alg": "ES256", "kid": "ES256", "b64": False},
    "b64-false-crit": {"alg": "ES256", "kid": "ES256", "b64": False, "crit": ["b64"]},
    "list": ["ES256"],
    "text": "ES256",
    "null": b"null",
    "number": 7,
    "no-json": b"alg=ES256",
    "no-text": b"\xff\xfe",
    "empty": b"",
    "deep": b'{"alg":"ES256","kid":"other","x":' + b"[" * 3000 + b"]" * 3000 + b"}",
    "unclosed": b"[" * 5000,
    "digits": b'{"alg":"ES256","kid":"ES256","crit":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("head", HEADERS.values(), ids=HEADERS)
async def test_bad_header_is_refused(head: Any, issuer: Issuer, checker: Checker) -> None:
    issuer.keys.append(jwk(OTHER, "ES256", "second"))
    assert await checker.refuses(signed(issuer, head))


@pytest.mark.parametrize("kind", ["jwk", "jku", "x5u", "x5c"])
async def test_key_that_a_token_brings_along_is_no_key(kind: str, issuer: Issuer, checker: Checker) -> None:
    theirs = jwk(OTHER, "ES256", "theirs")
    brought = {"jwk": theirs, "jku": f"{issuer.url}/keys", "x5u": f"{issuer.url}/keys", "x5c": ["MIIB"]}[kind]
    await checker.subject(issuer.token())
    for key_id in ("theirs", "ES256"):
        head = {"alg": "ES256", "kid": key_id, kind: brought}
        assert await checker.refuses(signed(issuer, head, key=OTHER))
    assert issuer.asked == 1


CLAIMS: dict[str, Any] = {
    "iss-other": {"iss": "https://other.example"},
    "iss-slash": {"iss": "{url}/"},
    "iss-upper": {"iss": "{URL}"},
    "iss-list": {"iss": ["{url}"]},
    "iss-null": {"iss": None},
    "iss-nul": {"iss": "{url}\0"},
    "iss-object": {"iss": {"{url}": 1}},
    "aud-other": {"aud": "other"},
    "aud-empty": {"aud": ""},
    "aud-null": {"aud": None},
    "aud-upper": {"aud": AUDIENCE.upper()},
    "aud-prefix": {"aud": AUDIENCE[:-1]},
    "aud-space": {"aud": f"{AUDIENCE} "},
    "aud-others": {"aud": ["a", "b"]},
    "aud-no-texts": {"aud": [AUDIENCE, 7]},
    "aud-nested": {"aud": [[AUDIENCE]]},
    "aud-object": {"aud": {AUDIENCE: 1}},
    "aud-number": {"aud": 7},
    "aud-azp": {"aud": "other", "azp": AUDIENCE},
    "exp-null": {"exp": None},
    "exp-past": {"exp": 1},
    "exp-zero": {"exp": 0},
    "exp-negative": {"exp": -1},
    "exp-text": {"exp": "soon"},
    "exp-digits": {"exp": "9999999999"},
    "exp-true": {"exp": True},
    "exp-list": {"exp": [9999999999]},
    "exp-object": {"exp": {}},
    "exp-nan": {"exp": float("nan")},
    "exp-infinite": {"exp": float("inf")},
    "exp-huge": {"exp": 1e308},
    "exp-long": {"exp": 10**4000},
    "exp-year-10000": {"exp": 253_402_300_801},
    "nbf-future": {"nbf": 9_999_999_999},
    "nbf-text": {"nbf": "soon"},
    "nbf-infinite": {"nbf": float("inf")},
    "nbf-nan": {"nbf": float("nan")},
    "nbf-list": {"nbf": [1]},
    "iat-future": {"iat": 9_999_999_999},
    "iat-infinite": {"iat": float("inf")},
    "iat-object": {"iat": {}},
    "sub-number": {"sub": 7},
    "sub-null": {"sub": None},
    "sub-empty": {"sub": ""},
    "sub-list": {"sub": ["alice"]},
    "sub-object": {"sub": {"name": "alice"}},
    "sub-true": {"sub": True},
    "sub-newline": {"sub": "alice\nbob"},
    "sub-nul": {"sub": "alice\0"},
    "sub-surrogate": {"sub": "\ud800"},
    "sub-direction": {"sub": "\u202ealice"},
    "sub-long": {"sub": "x" * 1025},
    "sub-long-quoted": {"sub": "ä" * 200},
    "jti-number": {"jti": 7},
}


@pytest.mark.parametrize("changes", CLAIMS.values(), ids=CLAIMS)
async def test_bad_claim_lets_nobody_in(changes: dict[str, Any], issuer: Issuer, checker: Checker) -> None:
    text = json.dumps(changes).replace("{url}", issuer.url).replace("{URL}", issuer.url.upper())
    now = int(time.time())
    claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "iat": now, **json.loads(text)}
    assert await checker.lets_nobody_in(signed(issuer, claims=claims))


PAYLOADS = {
    "list": b"[]",
    "text": b'"alice"',
    "null": b"null",
    "empty": b"",
    "no-json": b"alice",
    "no-text": b"\xff\xfe",
    "deep": b'{"x":' + b"[" * 3000 + b"]" * 3000 + b"}",
    "unclosed": b"[" * 5000,
    "digits": b'{"exp":' + b"9" * 5000 + b"}",
    "utf-16": '{"sub":"alice"}'.encode("utf-16"),
    "twice": b'{"iss":"URL","sub":"alice","exp":9999999999,"aud":"turnloom","aud":"other"}',
    "expires-twice": b'{"iss":"URL","sub":"alice","aud":"turnloom","exp":9999999999,"exp":1}',
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
async def test_bad_payload_lets_nobody_in(payload: bytes, issuer: Issuer, checker: Checker) -> None:
    assert await checker.lets_nobody_in(signed(issuer, claims=payload.replace(b"URL", issuer.url.encode())))


def spellings(token: str) -> dict[str, str]:
    """Texts that a lenient reader would take for this token, or for one whose signature fits."""
    head, claims, signature = token.split(".")
    raw = base64url_decode(signature)
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    nearest = last[last.index(signature[-1]) ^ 1]
    return {
        "no-signature": f"{head}.{claims}.",
        "no-claims": f"{head}..{signature}",
        "no-header": f".{claims}.{signature}",
        "two-parts": f"{head}.{claims}",
        "four-parts": f"{token}.{signature}",
        "last-dot": f"{token}.",
        "first-dot": f".{token}",
        "dots": "." * 10_000,
        "more-dots": token.replace(".", ".." * 100),
        "cut": token[:-1],
        "cut-bytes": f"{head}.{claims}.{segment(raw[:-1])}",
        "half": f"{head}.{claims}.{segment(raw[: len(raw) // 2])}",
        "trailing-byte": f"{head}.{claims}.{segment(raw + b'x')}",
        "trailing-nul": f"{head}.{claims}.{segment(raw + bytes(1))}",
        "trailing-text": f"{token}A",
        "twice": f"{head}.{claims}.{segment(raw + raw)}",
        "zero": f"{head}.{claims}.{segment(bytes(64))}",
        "zero-r": f"{head}.{claims}.{segment(bytes(32) + raw[32:])}",
        "zero-s": f"{head}.{claims}.{segment(raw[:32] + bytes(32))}",
        "ones": f"{head}.{claims}.{segment(bytes([255] * 64))}",
        "order": f"{head}.{claims}.{segment(ORDER.to_bytes(32, 'big') * 2)}",
        "swapped": f"{head}.{claims}.{segment(raw[32:] + raw[:32])}",
        "der": f"{head}.{claims}.{segment(raw_to_der_signature(raw, ec.SECP256R1()))}",
        "padded": f"{token}==",
        "padded-header": f"{head}==.{claims}.{signature}",
        "padded-once": f"{token}=",
        "unused-bits": token[:-1] + nearest,
        "base64": token.replace("-", "+").replace("_", "/") + "+/",
        "newline": f"{token}\n",
        "newlines": token.replace(".", ".\n"),
        "space-within": token.replace(".", ". "),
        "nul": f"{token}\0",
        "nul-within": token.replace(".", "\0."),
        "fullwidth-dot": token.replace(".", "．"),
        "fullwidth": token.replace("A", "Ａ") + "Ａ",
        "percent": token.replace(".", "%2e"),
        "quoted": f'"{token}"',
        "json": json.dumps({"payload": claims, "protected": head, "signature": signature}),
        "scheme": f"Bearer {token}",
        "oversized": f"{head}.{claims}.{'A' * 20_000}",
        "oversized-header": f"{'A' * 2_000_000}.{claims}.{signature}",
        "surrogate": f"{head}.{claims}\ud800.{signature}",
        "encrypted": f"{head}.{claims}.{signature}.{claims}.{signature}",
    }


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the curve P-256."""


@pytest.mark.parametrize("spelling", spellings("e30.e30." + "A" * 86))
async def test_other_spelling_of_a_good_token_is_refused(spelling: str, issuer: Issuer, checker: Checker) -> None:
    assert await checker.refuses(spellings(signed(issuer))[spelling])


async def test_rsa_key_signs_nothing_for_another_algorithm(issuer: Issuer, checker: Checker) -> None:
    for algorithm, other in [("RS256", "ES256"), ("ES256", "RS256"), ("EdDSA", "ES256"), ("ES256", "EdDSA")]:
        assert await checker.refuses(signed(issuer, {"alg": algorithm, "kid": algorithm}, algorithm=other))
        assert await checker.refuses(signed(issuer, {"alg": algorithm, "kid": other}, algorithm=other))


async def test_token_as_long_as_a_header_may_be_is_read(issuer: Issuer, checker: Checker) -> None:
    now = int(time.time())
    claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "groups": ["x" * 6000]}
    assert await checker.subject(signed(issuer, claims=claims)) == "alice"
    assert await checker.refuses(signed(issuer, claims={**claims, "groups": ["x" * 8000]}))


async def test_refused_token_leaves_one_line_and_no_traceback(
    issuer: Issuer, checker: Checker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "turnloom")
    for head in HEADERS.values():
        with pytest.raises(Unauthorized):
            await checker.policy(signed(issuer, head))
    assert len(caplog.records) == len(HEADERS)
    assert not any(record.exc_info or "\n" in record.getMessage() for record in caplog.records)


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


async def test_known_key_waits_for_no_answer_about_an_unknown_one(issuer: Issuer, checker: Checker) -> None:
    await checker.subject(issuer.token())
    issuer.gate = Gate()
    checker.advance(PAUSE)
    unknown = [asyncio.create_task(checker.refuses(issuer.token(key=OTHER, key_id=f"new-{at}"))) for at in range(5)]
    await issuer.gate.reached.wait()
    async with asyncio.timeout(5):
        for _ in range(5):
            assert await checker.subject(issuer.token()) == "alice"
    assert not any(task.done() for task in unknown)
    issuer.gate.open()
    assert await asyncio.gather(*unknown) == [True] * 5
    assert issuer.asked == 2


async def test_old_keys_are_taken_while_a_slow_issuer_is_asked_for_new_ones(issuer: Issuer, checker: Checker) -> None:
    await checker.subject(issuer.token())
    issuer.gate = Gate()
    issuer.keys = issuer.keys[:1]
    checker.advance(GOOD_FOR)
    for _ in range(5):
        assert await checker.subject(issuer.token()) == "alice"
    issuer.gate.open()
    assert await checker.refuses(issuer.token(key_id="unknown"))
    assert await checker.refuses(issuer.token())
    assert issuer.asked == 2


async def test_old_keys_are_forgotten_after_a_day_without_an_answer(issuer: Issuer, checker: Checker) -> None:
    await checker.subject(issuer.token())
    issuer.broken = True
    checker.advance(KEPT_FOR - PAUSE)
    assert await checker.subject(issuer.token()) == "alice"
    checker.advance(PAUSE)
    with pytest.raises(UpstreamBroken):
        await checker.subject(issuer.token())
    issuer.broken = False
    checker.advance(SHORT_PAUSE)
    assert await checker.subject(issuer.token()) == "alice"


async def test_unknown_key_is_not_refused_while_the_issuer_gives_no_answer(issuer: Issuer, checker: Checker) -> None:
    await checker.subject(issuer.token())
    issuer.broken = True
    checker.advance(PAUSE)
    for _ in range(3):
        with pytest.raises(UpstreamBroken) as failure:
            await checker.subject(issuer.token(key=OTHER, key_id="next"))
        assert failure.value.code == "authorizer_unavailable"
    assert issuer.asked == 2


async def test_few_wait_for_an_unknown_key_and_the_others_are_sent_away(issuer: Issuer, checker: Checker) -> None:
    issuer.gate = Gate()
    waiting = [asyncio.create_task(checker.subject(issuer.token(key_id=f"new-{at}"))) for at in range(100)]
    done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
    while len(pending) > 32:
        done, pending = await asyncio.wait(waiting, timeout=0.05)
    assert all(isinstance(task.exception(), UpstreamBroken) for task in done)
    issuer.gate.open()
    assert all(
        isinstance(refusal, Unauthenticated) for refusal in await asyncio.gather(*pending, return_exceptions=True)
    )
    assert issuer.asked == 1


def test_question_that_a_frozen_process_left_open_ends_when_it_goes_on(issuer: Issuer, checker: Checker) -> None:
    with asyncio.Runner() as process:
        process.run(checker.subject(issuer.token()))
        issuer.gate = Gate()
        checker.advance(GOOD_FOR)
        assert process.run(checker.subject(issuer.token())) == "alice"
        issuer.keys = issuer.keys[:1]
        issuer.gate.open()
        # As after a thaw: the answer lies there, and the loop has not run since the question.
        with pytest.raises(Unauthenticated):
            process.run(checker.subject(issuer.token(key=OTHER, key_id="unknown")))
        with pytest.raises(Unauthenticated):
            process.run(checker.subject(issuer.token()))
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


DEEP = b'{"keys": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
MANY = {"keys": [jwk(PRIVATE["RS256"], "RS256", f"key-{number}") for number in range(500)] * 20}
BOMB = gzip.compress(gzip.compress(b" " * 100_000_000))


@pytest.mark.parametrize(
    "content",
    [
        Response(DEEP),
        Response(b"[" * 200_000),
        Response(json.dumps(MANY)),
        Response(BOMB, headers={"content-encoding": "gzip, gzip"}),
        Response(gzip.compress(b'{"keys": []}'), headers={"content-encoding": "gzip"}),
        Response(b'{"keys": [{"kty": "RSA", "n": "' + b"A" * 10_000_000 + b'", "e": "AQAB"}]}'),
        Response(b"\xff\xfe{"),
        Response(b"NaN"),
        Response(b'{"keys": ' + b"9" * 100_000 + b"}"),
        Response(b""),
    ],
    ids=["deep", "unclosed", "many", "bomb", "compressed", "large", "no-text", "nan", "digits", "empty"],
)
async def test_hostile_set_of_keys_is_no_set(content: Response, issuer: Issuer, checker: Checker) -> None:
    issuer.content = content
    with pytest.raises(UpstreamBroken):
        await checker.subject(issuer.token())
    issuer.content = None
    checker.advance(SHORT_PAUSE)
    assert await checker.subject(issuer.token()) == "alice"


async def test_first_hundred_keys_of_a_set_are_read(issuer: Issuer, checker: Checker) -> None:
    shown = issuer.keys[1]
    issuer.keys = [*({**shown, "kid": f"key-{number}"} for number in range(99)), shown, {**shown, "kid": "late"}]
    assert await checker.subject(issuer.token()) == "alice"
    assert await checker.refuses(issuer.token(key_id="late"))


async def test_private_half_of_a_key_is_not_read(issuer: Issuer, checker: Checker) -> None:
    shown = get_default_algorithms()["RS256"].to_jwk(PRIVATE["RS256"], as_dict=True)
    issuer.keys = [{**shown, "kid": "RS256", "d": "AQAB", "p": "AQAB", "q": "AQAB"}]
    assert await checker.subject(issuer.token("RS256")) == "alice"


BROKEN: list[Any] = [7, {}, {"kty": "oct"}, {"kty": "RSA"}, {"kty": "EC", "crv": "P-256", "x": 7, "y": 8}]


async def test_a_key_that_cannot_be_read_does_not_cost_the_others(issuer: Issuer, checker: Checker) -> None:
    issuer.keys = [*BROKEN, *issuer.keys]
    assert await checker.subject(issuer.token()) == "alice"


@pytest.mark.parametrize("keys", [[], "none", BROKEN])
async def test_a_set_without_a_usable_key_is_no_set(keys: Any, issuer: Issuer, checker: Checker) -> None:
    issuer.keys = keys
    with pytest.raises(UpstreamBroken):
        await checker.subject(issuer.token())
