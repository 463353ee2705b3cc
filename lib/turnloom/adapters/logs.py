"""Log lines as JSON objects, for a deployment: level, time, place, message, the deployment, and what `extra` names.

No line holds what users or models said; those who log take care of that, by naming ids only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping


def structured(service: str, level: str, trail: Callable[[], Mapping[str, str]]) -> None:
    """Let our loggers write such lines to standard error, from this level on, and everybody else's their warnings.

    Each line has the fields of the `trail` where it was written, unless it has its own of that name.
    """
    from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(LambdaPowertoolsFormatter(service=service, log_record_order=["level", "message"]))
    handler.addFilter(lambda record: _marked(record, trail()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("turnloom").setLevel(level)


def _marked(record: logging.LogRecord, fields: Mapping[str, str]) -> bool:
    record.__dict__.update({name: told for name, told in fields.items() if name not in record.__dict__})
    return True
