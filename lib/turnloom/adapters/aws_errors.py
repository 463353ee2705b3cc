"""Errors of boto3 as callers are to see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from turnloom.domain.errors import StoreUnavailable

_PASSING = frozenset(
    {
        "InternalError",
        "InternalServerError",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionConflictException",
    }
)
_SERVER_ERROR = 500


@contextmanager
def passing_faults() -> Iterator[None]:
    """Raise StoreUnavailable for what may pass, after boto3 has tried again: throttling, timeouts, no connection."""
    # Imported late: a laptop has no use for it.
    from botocore.exceptions import ClientError, HTTPClientError

    try:
        yield
    except HTTPClientError as error:
        raise StoreUnavailable(str(error)) from error
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if error.response.get("Error", {}).get("Code") not in _PASSING and status < _SERVER_ERROR:
            raise
        raise StoreUnavailable(str(error)) from error
