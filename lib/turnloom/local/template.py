"""What template.yaml says, as plain data: the laptop runs what would be deployed."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
"""The repository, with template.yaml and functions/ in it."""

REGION = "us-east-1"
ACCOUNT = "123456789012"
STATE_MACHINE_ARN = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:turnloom-turn"
"""The state machine of the laptop."""


@dataclass(frozen=True, slots=True)
class Function:
    """A Lambda function: its logical id, its folder in functions/, and what calls it.

    `routes` are (method, path), where a path may end in a greedy `{name+}`, and `open` those of them that want no
    credential; `schedule` is a rate expression.
    """

    name: str
    folder: str
    routes: tuple[tuple[str, str], ...] = ()
    open: tuple[tuple[str, str], ...] = ()
    schedule: str | None = None
    streams: bool = False

    @property
    def arn(self) -> str:
        """Its address on the laptop."""
        return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{self.folder}"


@dataclass(frozen=True, slots=True)
class Table:
    """A DynamoDB table by its name without the prefix, with the names of its secondary indexes."""

    name: str
    indexes: tuple[str, ...]


def functions(root: Path = ROOT) -> list[Function]:
    """Every function of the template, in its order."""
    return [_function(name, properties) for name, properties in _resources(root, "AWS::Serverless::Function")]


def authorizer(root: Path = ROOT) -> Function:
    """The function that API Gateway asks whose request it has; raises LookupError."""
    [(_, api)] = _resources(root, "AWS::Serverless::Api")
    named = api["Auth"]["Authorizers"][api["Auth"]["DefaultAuthorizer"]]["FunctionArn"]["Fn::GetAtt"][0]
    return next(function for function in functions(root) if function.name == named)


def tables(root: Path = ROOT) -> list[Table]:
    """Every table of the template, in its order."""
    return [_table(properties) for _, properties in _resources(root, "AWS::DynamoDB::Table")]


def definition(root: Path = ROOT) -> str:
    """The state machine's definition as JSON text, with the functions' addresses on the laptop filled in.

    Raises LookupError when a substitution is missing or names no function.
    """
    [(_, properties)] = _resources(root, "AWS::Serverless::StateMachine")
    arns = {function.name: function.arn for function in functions(root)}
    given = {name: arns[value["Fn::GetAtt"][0]] for name, value in properties["DefinitionSubstitutions"].items()}
    text = (root / properties["DefinitionUri"]).read_text()
    return re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], text)


def tasks(root: Path = ROOT) -> frozenset[str]:
    """The folders of the functions that the state machine calls."""
    [(_, properties)] = _resources(root, "AWS::Serverless::StateMachine")
    folders = {function.name: function.folder for function in functions(root)}
    return frozenset(folders[value["Fn::GetAtt"][0]] for value in properties["DefinitionSubstitutions"].values())


def load(folder: str, functions: Path = ROOT / "functions") -> ModuleType:
    """The handler module of a function, as Lambda would import it. Raises FileNotFoundError."""
    path = functions / folder / "handler.py"
    spec = importlib.util.spec_from_file_location(f"functions.{folder}.handler", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _function(name: str, properties: Mapping[str, Any]) -> Function:
    events = properties.get("Events", {}).values()
    api = [event["Properties"] for event in events if event["Type"] == "Api"]
    schedules = [event["Properties"]["Schedule"] for event in events if event["Type"] == "Schedule"]
    return Function(
        name=name,
        folder=Path(properties["CodeUri"]).name,
        routes=tuple((route["Method"], route["Path"]) for route in api),
        open=tuple((r["Method"], r["Path"]) for r in api if r.get("Auth", {}).get("Authorizer") == "NONE"),
        schedule=schedules[0] if schedules else None,
        streams=any(route.get("ResponseTransferMode") == "RESPONSE_STREAM" for route in api),
    )


def _table(properties: Mapping[str, Any]) -> Table:
    name = properties["TableName"]["Fn::Sub"].removeprefix("${AWS::StackName}-")
    return Table(name, tuple(index["IndexName"] for index in properties.get("GlobalSecondaryIndexes", ())))


def _resources(root: Path, kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    resources = _load(root / "template.yaml")["Resources"]
    return [(name, found["Properties"]) for name, found in resources.items() if found["Type"] == kind]


@cache
def _load(path: Path) -> Mapping[str, Any]:
    return read(path)


def read(path: Path) -> dict[str, Any]:
    """A template as plain data, CloudFormation's short tags in their long form."""
    with path.open() as file:
        loaded: dict[str, Any] = yaml.load(file, _Loader)  # noqa: S506
    return loaded


class _Loader(yaml.CSafeLoader):
    """Safe YAML with CloudFormation's short tags in their long form: `!Ref X` is {"Ref": "X"}.

    Read by libyaml, which is ten times faster than Python.
    """


def _short_tag(loader: _Loader, tag: str, node: yaml.Node) -> dict[str, Any]:
    match node:
        case yaml.ScalarNode():
            value: Any = loader.construct_scalar(node)
        case yaml.SequenceNode():
            value = loader.construct_sequence(node, deep=True)
        case yaml.MappingNode():
            value = loader.construct_mapping(node, deep=True)
    if tag == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {tag if tag in ("Ref", "Condition") else f"Fn::{tag}": value}


_Loader.add_multi_constructor("!", _short_tag)
