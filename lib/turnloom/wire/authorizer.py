"""API Gateway's authorizer of type REQUEST: its event in, a policy out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from turnloom.domain.errors import Unauthenticated, UpstreamError
from turnloom.usecases.authorization import Authorization
from turnloom.usecases.trail import mark_of

logger = logging.getLogger(__name__)

REFUSAL = "No valid credential: send Authorization: Bearer <key>."
"""All that is said to who is refused: not whether a key exists, and not what is wrong with a token."""


UNAVAILABLE = "Credentials cannot be checked now: try again in a few seconds."
"""All that is said while the authorizer has no answer."""
RETRY_AFTER = 5
"""In seconds; template.yaml says the same."""


class Unavailable(Exception):
    """What the authorizer depends on is down; API Gateway makes a 503 of this, by a gateway response of ours."""

    def __init__(self) -> None:
        super().__init__("Unavailable")


class Unauthorized(Exception):
    """What API Gateway makes a 401 of; it goes by the text, any other makes a 500."""

    def __init__(self) -> None:
        super().__init__("Unauthorized")


async def policy(authorization: Authorization, event: Mapping[str, Any]) -> dict[str, Any]:
    """Leave for the whole API, as it is kept for other routes too, and the owner for its functions.

    The context has `owner`, and `expires` (seconds since the epoch) unless the credential is good for ever; they reach
    a function in its request context, as texts. Raises Unauthorized, and Unavailable when nobody can say.
    """
    try:
        identity = await authorization.identify(_header(event))
    except Unauthenticated as refusal:
        logger.info("refused: %s", refusal)
        raise Unauthorized from None
    except UpstreamError as failure:
        logger.warning("not decided: %s", failure)
        raise Unavailable from None
    context = {"owner": identity.owner}
    if identity.expires is not None:
        context["expires"] = str(identity.expires)
    stage = "/".join(event["methodArn"].split("/")[:2])
    statement = {"Effect": "Allow", "Action": "execute-api:Invoke", "Resource": f"{stage}/*"}
    return {
        # Goes into the access log as it stands, and is what our own lines have for the owner.
        "principalId": mark_of(identity.owner),
        "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
        "context": context,
    }


def _header(event: Mapping[str, Any]) -> str | None:
    """The one Authorization header. Of two, API Gateway might keep the answer for the one that was not looked at."""
    given = event.get("multiValueHeaders") or {name: [value] for name, value in (event.get("headers") or {}).items()}
    values = [value for name, found in given.items() if name.lower() == "authorization" for value in found]
    return values[0] if len(values) == 1 else None
