"""The command of an installed Turnloom: `turnloom keys ...`."""

from __future__ import annotations

import sys

from turnloom import keys


def main() -> int:
    if sys.argv[1:2] != ["keys"]:
        print("usage: turnloom keys {create,list,revoke} ...", file=sys.stderr)
        return 2
    return keys.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
