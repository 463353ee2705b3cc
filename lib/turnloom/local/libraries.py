"""Imports at the start what a deployed function imports at its first use: on a laptop somebody waits for that use.

A cold start pays for every import, so the library puts off those that not every function needs.
"""

from __future__ import annotations

from importlib import import_module

LIBRARIES = (
    "openai",
    "httpcore2",
    "truststore",
    "turnloom.adapters.openai_model.bounds",
    "turnloom.adapters.tools.mcp",
    "turnloom.adapters.tools.http",
    "jsonschema.validators",
    "simpleeval",
)


def import_libraries() -> None:
    """Import what a turn may need."""
    for name in LIBRARIES:
        import_module(name)
