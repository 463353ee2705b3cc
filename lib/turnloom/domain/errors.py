"""What can go wrong, sorted by whose fault it is.

    Problem
    ├── CallerError          the request; the same request again fails again
    │   ├── InvalidRequest   a value is missing, malformed, out of range or refers to nothing usable
    │   ├── NotFound         no such object for this owner
    │   ├── TooLarge         more bytes than the platform takes
    │   ├── UnsupportedEncoding  a content coding that is not decoded here
    │   ├── Unauthenticated  a credential (ours, or one for an MCP server) was refused
    │   └── NotAwaiting      the turn is in no state to take what was sent
    ├── Busy                 another turn holds the session; a retry may help
    ├── UpstreamError        the model endpoint (or a server that a turn depends on)
    │   ├── UpstreamRejected the endpoint understood and refused: a retry does not help
    │   ├── UpstreamLimited  it asks for patience: a retry may help
    │   ├── UpstreamTimeout  it did not answer in time
    │   └── UpstreamBroken   it failed, refused the connection, or broke off
    └── ServerFault          ours
        └── ContentLost      what was stored is gone: a retry does not help

    StoreUnavailable         no Problem: the store cannot be read or written just now; see there

`code` is the stable word that clients match on; `wire/problems.py` is the one table from these to HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Problem(Exception):
    """A failure that a caller is told about: a message for people, a `code` for programs, `param` for the culprit."""

    code = "internal_error"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.extra: Mapping[str, Any] = extra or {}


class CallerError(Problem):
    code = "invalid_request"


class InvalidRequest(CallerError):
    code = "invalid_request"


class NotFound(CallerError):
    """No `kind` of that id for this owner; another owner's object is reported in the same words.

    `hint` is a sentence about where such an id is looked for.
    """

    def __init__(self, kind: str, identifier: str, *, param: str | None = None, hint: str = "") -> None:
        label = kind.replace("_", " ").capitalize()
        message = f"{label} '{identifier}' not found" + (f". {hint}" if hint else "")
        super().__init__(message, code=f"{kind}_not_found", param=param)
        self.kind = kind
        self.identifier = identifier


class TooLarge(CallerError):
    code = "payload_too_large"


class UnsupportedEncoding(CallerError):
    code = "unsupported_content_encoding"


class Unauthenticated(CallerError):
    code = "unauthenticated"


class NotAwaiting(CallerError):
    code = "turn_not_awaiting_input"


class Busy(Problem):
    code = "session_busy"
    retryable = True


class UpstreamError(Problem):
    code = "upstream_error"
    retryable = True


class UpstreamRejected(UpstreamError):
    code = "upstream_rejected"
    retryable = False


class UpstreamLimited(UpstreamError):
    """`extra["retry_after"]` is the endpoint's own wish, in seconds, when it gave one."""

    code = "rate_limited"


class UpstreamTimeout(UpstreamError):
    code = "upstream_timeout"


class UpstreamBroken(UpstreamError):
    code = "upstream_error"


class ServerFault(Problem):
    code = "internal_error"


class TurnGoesOn(ServerFault):
    """The turn may be stored and not over, though this request cannot follow it: it is to be read, not sent again."""

    code = "turn_goes_on"

    def __init__(self, turn_id: str, reason: str = "What happens in it could not be stored or read.") -> None:
        message = f"'{turn_id}' may go on: read it, and do not send the request again. {reason}"
        super().__init__(message, extra={"turn_id": turn_id})


class ContentLost(ServerFault):
    """The `kind` of this id exists, but what was stored of it is missing or unreadable. It can still be deleted.

    `hint` is a sentence about how to go on.
    """

    code = "content_lost"

    def __init__(self, kind: str, identifier: str, *, hint: str = "") -> None:
        message = f"The stored content of {kind} '{identifier}' is lost." + (f" {hint}" if hint else "")
        super().__init__(message)


class StoreUnavailable(Exception):
    """The store is locked, throttled or unreachable.

    It is no Problem, because no turn may end by it: whoever drives a turn tries again, and so may a caller.
    """

    code = "store_unavailable"
    message = "The store cannot be reached just now. Try again in a few seconds."


class StorageFull(StoreUnavailable):
    """There is no space left to write, not even the note that something is deleted."""

    code = "storage_full"
    message = "The disk that holds the store is full. Free some space on it: deleting needs a little of it too."
