"""The functions' apps under one roof, as the gateway has them, over the services of a test."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Route

from turnloom.usecases.services import Services
from turnloom.wire.agents_api.routes import ROUTES, agents_app


def agents_api(services: Services) -> Starlette:
    """Every function of the Agents API, behind its route."""
    routes = [
        Route(route.path, agents_app(route.function, lambda: services), methods=[route.method]) for route in ROUTES
    ]
    return Starlette(routes=routes)
