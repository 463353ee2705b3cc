"""The authorizer, put together from its settings. Not in `bootstrap`: it runs before all others and must start soon."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from turnloom.adapters.clock import SystemClock
from turnloom.loop import on_loop
from turnloom.storage import storage
from turnloom.store.api_keys import ApiKeys
from turnloom.usecases.authorization import LEEWAY, Authorization, Trust
from turnloom.wire.authorizer import policy

MODES = ("none", "keys", "jwt", "both")


def admit(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the policy for an authorizer event; raises Unauthorized, or Unavailable when nobody can say.

    On a loop of its own: the laptop's gateway sweeps in the same process.
    """
    return on_loop(policy(authorization(), event), "turnloom-authorizer")


@cache
def authorization() -> Authorization:
    """The authorization of this process, by its environment."""
    env = dict(os.environ)
    # Lines of the authorizer are made JSON by Lambda itself, which takes less time to start than our own format.
    logging.getLogger("turnloom").setLevel(env.get("TURNLOOM_LOG_LEVEL", "INFO"))
    return build(env)


def build(env: dict[str, str]) -> Authorization:
    """Authorization for these settings; raises ValueError when they do not say whom to trust.

    TURNLOOM_AUTH has no default here: nothing is open because somebody forgot to say that it is not.
    """
    mode = env.get("TURNLOOM_AUTH", "")
    if mode not in MODES:
        raise ValueError(f"TURNLOOM_AUTH is '{mode}'; it must be one of {', '.join(MODES)}")
    return Authorization(
        keys=api_keys(env) if mode in ("keys", "both") else None,
        trust=_trust(env) if mode in ("jwt", "both") else None,
        open=mode == "none",
    )


def api_keys(env: dict[str, str]) -> ApiKeys:
    """The API keys of the deployment, or the laptop, that these settings name."""
    return ApiKeys(storage(env)("keys"))


def _trust(env: dict[str, str]) -> Trust:
    from turnloom.adapters.guard import Guard, Resolver, hosts_in
    from turnloom.adapters.jwks import Jwks
    from turnloom.adapters.tokens import IssuedTokens

    issuer = env.get("TURNLOOM_JWT_ISSUER", "")
    audiences = [name.strip() for name in env.get("TURNLOOM_JWT_AUDIENCE", "").split(",") if name.strip()]
    if not issuer or not audiences:
        raise ValueError("Tokens need TURNLOOM_JWT_ISSUER and TURNLOOM_JWT_AUDIENCE")
    # The operator names these addresses, so that on a laptop they may be its own whoever may call. No owner's slow name
    # keeps their resolution waiting.
    guard = Guard(
        allow_loopback="TURNLOOM_TABLES_PREFIX" not in env,
        allow_hosts=hosts_in(env.get("TURNLOOM_HOSTS", "")),
        https_only=True,
        resolve=Resolver(threads=2),
    )
    jwks = Jwks(guard, SystemClock(), issuer, env.get("TURNLOOM_JWT_JWKS_URL", ""))
    tokens = IssuedTokens(jwks, issuer, audiences, LEEWAY)
    return Trust(tokens, issuer, env.get("TURNLOOM_JWT_OWNER_CLAIM") or "sub")
