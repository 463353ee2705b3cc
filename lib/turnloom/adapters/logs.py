"""Log lines as JSON objects, for a deployment: level, time, place, message, the deployment, and what `extra` names.

No line holds what users or models said; those who log take care of that, by naming ids only.
"""

from __future__ import annotations

import logging


def structured(service: str, level: str) -> None:
    """Let our loggers write such lines to standard error, from this level on, and everybody else's their warnings."""
    from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(LambdaPowertoolsFormatter(service=service, log_record_order=["level", "message"]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("turnloom").setLevel(level)
