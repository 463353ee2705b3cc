"""`make build WARM=snapstart` or `WARM=provisioned`: what was built, changed so that cold starts are short.

Both ways are of published versions, which never change. So the API, the schedule and the state machine get to call an
alias, and every deployment has to publish: it must be given a `Release` that it was not given before. Why that is no
parameter of template.yaml: docs/decisions/13-warm-functions-are-built.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from turnloom.local.template import ROOT, read

ALIAS = "live"
BUILT = ROOT / ".aws-sam" / "build" / "template.yaml"
FUNCTION = "AWS::Serverless::Function"
FIRST = ("AuthorizeRequest", "CreateAgentTurn", "CreateOpenaiResponse")
"""The functions that stand before a first token: the ones of which some are kept running."""

_RELEASE = {
    "Type": "String",
    # The first ten characters are what SAM tells versions apart by.
    "AllowedPattern": "^[0-9a-z]{10}$",
    "Description": "Ten digits or small letters, other ones in each deployment, such as the output of `date +%s`.",
}
_KEPT = {
    "Type": "Number",
    "Default": 1,
    "MinValue": 1,
    "Description": "How many of each function that stands before a first token are kept running.",
}

Template = dict[str, Any]


def snapstart(template: Template) -> None:
    """Each function starts from a snapshot of itself (https://docs.aws.amazon.com/lambda/latest/dg/snapstart.html)."""
    template["Globals"]["Function"]["SnapStart"] = {"ApplyOn": "PublishedVersions"}


def provisioned(template: Template) -> None:
    """Some of each function in `FIRST` run already."""
    template["Parameters"]["ProvisionedConcurrency"] = _KEPT
    kept = {"ProvisionedConcurrentExecutions": {"Ref": "ProvisionedConcurrency"}}
    for name in FIRST:
        template["Resources"][name]["Properties"]["ProvisionedConcurrencyConfig"] = kept


WAYS: Mapping[str, Callable[[Template], None]] = {"snapstart": snapstart, "provisioned": provisioned}


def warmed(template: Template, way: str) -> Template:
    """The template, a SAM one in long form, with functions that are called by their alias and start in this way."""
    functions = {name for name, found in template["Resources"].items() if found["Type"] == FUNCTION}
    changed: Template = {**template, "Resources": _by_alias(template["Resources"], functions)}
    changed["Parameters"]["Release"] = _RELEASE
    # An old version goes, as its snapshot would be paid for.
    changed["Globals"]["Function"].update({"AutoPublishAlias": ALIAS, "VersionDeletionPolicy": "Delete"})
    for name in functions:
        changed["Resources"][name]["Properties"]["AutoPublishCodeSha256"] = {"Ref": "Release"}
    WAYS[way](changed)
    return changed


def _by_alias(part: Any, functions: set[str]) -> Any:
    """The part with the alias of a function wherever it names the function's ARN."""
    match part:
        case {"Fn::GetAtt": [name, "Arn"]} if name in functions:
            return {"Ref": f"{name}Alias{ALIAS}"}
        case dict():
            return {name: _by_alias(value, functions) for name, value in part.items()}
        case list():
            return [_by_alias(value, functions) for value in part]
    return part


def main(path: Path = BUILT) -> int:
    """Change the built template, which stays as it is when the way is unknown."""
    way = sys.argv[1]
    if way not in WAYS:
        print(f"WARM is '{way}'; it must be one of {', '.join(WAYS)}", file=sys.stderr)
        return 2
    path.write_text(json.dumps(warmed(read(path), way), indent=1))
    print(f"Warm ({way}): deploy with --parameter-overrides Release=$(date +%s), every time.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
