"""`python -m infra.parameters > docs/parameters.md`: the parameters of template.yaml as a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnloom.local.template import ROOT, read

_HEAD = """\
# Parameters of the stack

Made from template.yaml by `python -m infra.parameters`. Give them to `sam deploy --guided`, or to `sam deploy` as
`--parameter-overrides Name=value ...`; what is not named there keeps its value.

| parameter | default | meaning |
|---|---|---|
"""


def page(template: Mapping[str, Any]) -> str:
    """The page in Markdown: a row for each parameter, in the template's order."""
    return _HEAD + "".join(_row(name, given) for name, given in template["Parameters"].items())


def _row(name: str, given: Mapping[str, Any]) -> str:
    default = "" if given["Default"] == "" else f"`{given['Default']}`"
    meaning = given["Description"]
    if "AllowedValues" in given:
        meaning += (
            " One of " + ", ".join(f"`{value}`" if value != "" else "empty" for value in given["AllowedValues"]) + "."
        )
    return f"| `{name}` | {default} | {meaning} |\n"


if __name__ == "__main__":
    print(page(read(ROOT / "template.yaml")), end="")
