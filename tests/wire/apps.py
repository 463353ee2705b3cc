"""The functions' apps under one roof, as the gateway has them, over the services of a test."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Route

from turnloom.usecases.services import Services
from turnloom.wire.agents_api import routes as agents_routes
from turnloom.wire.agents_api.routes import agents_app
from turnloom.wire.responses_api import routes as responses_routes
from turnloom.wire.responses_api.routes import responses_app


def both_apis(services: Services) -> Starlette:
    """Every function of the Agents and the Responses API, behind its route."""
    apis = ((agents_app, agents_routes.ROUTES), (responses_app, responses_routes.ROUTES))
    routes = [
        Route(route.path, app(route.function, lambda: services), methods=[route.method])
        for app, table in apis
        for route in table
    ]
    return Starlette(routes=routes)
