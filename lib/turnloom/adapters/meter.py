"""The Meter port: on CloudWatch in a deployment, and in the log of a laptop.

CloudWatch makes metrics of what stands in log lines (embedded metric format), which costs no call.

Each metric has the dimension `service`, the deployment; those of models have `model` too, those of failures `code`.
"""

from __future__ import annotations

import logging
from typing import Literal

from turnloom.domain.event import (
    Compacted,
    Event,
    InferenceCompleted,
    TakenOver,
    ToolCompleted,
    TurnAbandoned,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
)
from turnloom.domain.message import Usage

logger = logging.getLogger(__name__)

NAMESPACE = "Turnloom"
MetricUnitName = Literal["Count", "Milliseconds"]


class EmbeddedMeter:
    """Prints what CloudWatch makes metrics of; `service` tells deployments apart."""

    def __init__(self, service: str) -> None:
        self._service = service

    def saw(self, event: Event, *, api: str, model: str | None = None) -> None:
        match event:
            case InferenceCompleted(usage=usage) | Compacted(usage=usage):
                self._put(_tokens(usage), model=model or "unknown")
            case ToolCompleted(error=error):
                self._put({"ToolCalls": 1, "ToolFailures": int(error is not None)}, api=api)
            case TurnCompleted():
                self._put({"TurnsCompleted": 1}, api=api)
            case TurnFailed():
                self._put({"TurnsFailed": 1}, api=api)
                self._put({"FailuresByCode": 1}, code=event.code)
            case TurnCancelled() | TurnAbandoned():
                self._put({"TurnsCancelled": 1}, api=api)
            case TakenOver(lost=True):
                self._put({"TurnsTakenOver": 1}, api=api)
            case _:
                return

    def first_token(self, seconds: float, *, api: str, model: str) -> None:
        self._put({"FirstToken": seconds * 1000}, "Milliseconds", api=api)

    def _put(self, figures: dict[str, float], unit: MetricUnitName = "Count", **dimensions: str) -> None:
        # Imported late: 35 ms that the functions which run no turns do not have to spend.
        from aws_lambda_powertools.metrics import EphemeralMetrics

        metrics = EphemeralMetrics(namespace=NAMESPACE, service=self._service)
        for name, told in dimensions.items():
            metrics.add_dimension(name, told)
        for name, figure in figures.items():
            metrics.add_metric(name, unit, figure)
        metrics.flush_metrics()


class FailureLog:
    """The Meter of a laptop: logs why turns and tools failed, for whoever sits before it, and measures nothing."""

    def saw(self, event: Event, *, api: str, model: str | None = None) -> None:
        match event:
            case TurnFailed(code=code, message=message):
                logger.warning("A turn of %s failed with %s: %s", model or "an unknown model", code, message)
            case ToolCompleted(error={"message": message}):
                logger.warning("A tool failed: %s", message)
            case _:
                return

    def first_token(self, seconds: float, *, api: str, model: str) -> None:
        return


def _tokens(usage: Usage) -> dict[str, float]:
    return {
        "ModelCalls": 1,
        "InputTokens": usage.input_tokens,
        "CachedTokens": usage.cached_tokens,
        "OutputTokens": usage.output_tokens,
    }
