"""The neighbours of the Agents API: what its clients ask for beside agents and their turns."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from turnloom.usecases.services import Services
from turnloom.wire.app import application, envelope
from turnloom.wire.neighbours import inspect, model_registry, providers, shields, tool_runtime, toolgroups, tools

ROUTES = (
    *model_registry.ROUTES,
    *providers.ROUTES,
    *inspect.ROUTES,
    *shields.ROUTES,
    *toolgroups.ROUTES,
    *tools.ROUTES,
    *tool_runtime.ROUTES,
)


def neighbours_app(function: str, services: Callable[[], Services]) -> FastAPI:
    """The app of the function that serves one of these resources, all its methods."""
    return application(function, ROUTES, services, envelope)
