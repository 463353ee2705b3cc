"""Log lines as JSON objects, for a deployment: level, time, place, message, the deployment, and what `extra` names.

No line holds what users or models said; those who log take care of that, by naming ids only.
"""

from __future__ import annotations

import logging


def structured(service: str, level: str) -> None:
    """Let every logger of this process write such lines to standard error, from this level on."""
    from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(LambdaPowertoolsFormatter(service=service, log_record_order=["level", "message"]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Uvicorn's line for each request says less than our own, and names paths with ids.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
