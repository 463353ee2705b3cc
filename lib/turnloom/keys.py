"""API keys: made, listed, revoked.

    python -m turnloom.keys create --owner me [--label laptop] [--days 90]
    python -m turnloom.keys list
    python -m turnloom.keys revoke 0ck3...

With `--stack NAME` those of a deployed stack, in the account and region of the environment; else the laptop's own, in
`--data-dir`. What is made is shown once and kept nowhere.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import UTC, datetime

from turnloom import gate
from turnloom.adapters.clock import SystemClock, random_bits
from turnloom.domain.api_key import ApiKey, key_parts
from turnloom.store.api_keys import ApiKeys
from turnloom.usecases.authorization import create_key


def main(arguments: list[str] | None = None) -> int:
    """Run the command; what went wrong is one line on stderr, and 1."""
    given = _parser().parse_args(arguments)
    try:
        print(asyncio.run(_run(gate.api_keys(_settings(given)), given)))
    except Exception as failure:
        # Of the many ways to have no table (no credentials, no region, no such stack) each says its own.
        print(failure, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--stack", help="the name of a deployed stack")
    place.add_argument("--data-dir", help="the laptop's state (default: TURNLOOM_DATA_DIR, or .turnloom)")
    parser = argparse.ArgumentParser(
        prog="turnloom keys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", parents=[place], help="make a key and show it")
    create.add_argument("--owner", required=True, help="whose requests it makes")
    create.add_argument("--label", default="", help="what it is for")
    create.add_argument("--days", type=int, help="for how long it is good (default: until it is revoked)")
    commands.add_parser("list", parents=[place], help="all keys, as far as they are kept")
    revoke = commands.add_parser("revoke", parents=[place], help="let a key open nothing any more")
    revoke.add_argument("key", help="its id, or all of it")
    return parser


def _settings(given: argparse.Namespace) -> dict[str, str]:
    env = dict(os.environ)
    if given.stack:
        env["TURNLOOM_TABLES_PREFIX"] = f"{given.stack}-"
    if given.data_dir:
        env["TURNLOOM_DATA_DIR"] = given.data_dir
    return env


async def _run(keys: ApiKeys, given: argparse.Namespace) -> str:
    match given.command:
        case "create":
            return await create_key(keys, SystemClock(), random_bits, given.owner, label=given.label, days=given.days)
        case "list":
            return "\n".join([_COLUMNS, *map(_line, await keys.all())])
        case _:
            parts = key_parts(given.key)
            return await _revoked(keys, parts[0] if parts else given.key)


async def _revoked(keys: ApiKeys, key_id: str) -> str:
    if not await keys.revoke(key_id, SystemClock().now() // 1_000_000):
        raise LookupError(f"There is no key '{key_id}'")
    return f"Revoked {key_id}. Where a gateway keeps the authorizer's answers, it ends when the last of them does."


def _line(key: ApiKey) -> str:
    return "\t".join([key.key_id, _state(key), _date(key.created), key.owner, key.label])


_COLUMNS = "id\tstate\tcreated\towner\tlabel"


def _state(key: ApiKey) -> str:
    if key.revoked is not None:
        return f"revoked {_date(key.revoked)}"
    return "good" if key.expires is None else f"until {_date(key.expires)}"


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())
