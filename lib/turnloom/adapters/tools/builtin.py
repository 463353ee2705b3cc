"""Tools of Turnloom itself: a calculator and a clock. They need no key, keep nothing and reach for nothing."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from turnloom.adapters.tools.failure import ToolFailed
from turnloom.domain.message import JSON, Tool, ToolSource
from turnloom.ports import Clock

_EXPRESSION_CHARACTERS = 500
_BITS = 4096
_FACTORIAL = 500
_DIGITS = 100


def run_builtin(source: ToolSource, arguments: Mapping[str, JSON], clock: Clock) -> str:
    """The answer of a built-in tool; raises ToolFailed."""
    match source.group, source.name:
        case "builtin::calculator", "calculator":
            return calculated(_text(arguments, "expression"))
        case "builtin::clock", "current_time":
            return current_time(_text(arguments, "timezone", "UTC"), clock)
        case _:
            raise ToolFailed("unknown", f"There is no built-in tool '{source.name}' in '{source.group}'.")


def _text(arguments: Mapping[str, JSON], name: str, default: str = "") -> str:
    value = arguments.get(name) or default
    if isinstance(value, str) and value.strip():
        return value.strip()
    if name == "expression" and isinstance(value, int | float):
        return repr(value)
    raise ToolFailed("arguments", f"The argument '{name}' must be a text that is not empty.")


# --- the calculator


def calculated(expression: str) -> str:
    """The value of an arithmetic expression, e.g. "0.5"; floats are shown with 15 significant digits.

    Nothing but arithmetic is taken, and neither the expression nor any number in it may become so large that it takes
    noticeable time. Raises ToolFailed.
    """
    if len(expression) > _EXPRESSION_CHARACTERS:
        raise ToolFailed("tool", f"The expression is longer than {_EXPRESSION_CHARACTERS} characters.")
    # Models write powers and signs as people do.
    written = expression.strip().translate({0x5E: "**", 0xD7: "*", 0xF7: "/", 0x2212: "-"})
    try:
        return _shown(_evaluator().eval(written, ast.parse(written, mode="eval").body))
    except SyntaxError:
        raise ToolFailed("tool", f"'{expression}' is not an arithmetic expression.") from None
    except (RecursionError, MemoryError):
        raise ToolFailed("tool", "The expression is nested too deeply.") from None
    except Exception as failure:
        # Everything else that evaluation raises is the expression's fault and says so: division by zero, a name that
        # is not defined, a wrong number of arguments.
        raise ToolFailed("tool", f"'{expression}' cannot be calculated: {failure}") from None


def _evaluator() -> Any:
    from simpleeval import SimpleEval

    operators = {
        ast.Add: _checked(lambda a, b: a + b),
        ast.Sub: _checked(lambda a, b: a - b),
        ast.Mult: _checked(lambda a, b: a * b),
        ast.Div: _checked(lambda a, b: a / b),
        ast.FloorDiv: _checked(lambda a, b: a // b),
        ast.Mod: _checked(lambda a, b: a % b),
        ast.Pow: _checked(_power),
        ast.USub: _checked(lambda a: -a),
        ast.UAdd: _checked(lambda a: +a),
    }
    evaluator = SimpleEval(operators, {name: _checked(function) for name, function in _FUNCTIONS.items()}, _NAMES)
    taken = (ast.Constant, ast.Name, ast.UnaryOp, ast.BinOp, ast.Call)
    evaluator.nodes = {node: evaluate for node, evaluate in evaluator.nodes.items() if node in taken}
    return evaluator


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on numbers that are not too large; with each value checked when it is used, none can grow far."""

    def checked(*numbers: Any) -> Any:
        return function(*map(_number, numbers))

    return checked


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("only real numbers can be calculated with")
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise ValueError(f"a number becomes larger than {_BITS} bits")
    return value


def _power(base: float, exponent: float) -> Any:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(base) > 1 and math.log2(abs(base)) * exponent > _BITS:
        raise ValueError(f"a power becomes larger than {_BITS} bits")
    return base**exponent


def _factorial(number: float) -> int:
    if number > _FACTORIAL:
        raise ValueError(f"factorials are calculated up to {_FACTORIAL}")
    return math.factorial(_whole(number))


def _rounded(number: float, digits: float = 0) -> float:
    if abs(digits) > _DIGITS:
        raise ValueError(f"numbers are rounded to at most {_DIGITS} digits")
    return round(number, _whole(digits))


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError(f"{number} is not a whole number")
    return int(number)


def _shown(value: Any) -> str:
    number = _number(value)
    if isinstance(number, int):
        return str(number)
    if not math.isfinite(number):
        raise ValueError("the result is not a finite number")
    return f"{number:.15g}"


_NAMES = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "min": min,
    "max": max,
    "round": _rounded,
    "pow": _power,
    "factorial": _factorial,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "atan2": math.atan2,
    "degrees": math.degrees,
    "radians": math.radians,
    "floor": math.floor,
    "ceil": math.ceil,
    "gcd": math.gcd,
    "hypot": math.hypot,
}


# --- the clock


def current_time(timezone: str, clock: Clock) -> str:
    """The time now in an IANA time zone, as ISO 8601 to the second; raises ToolFailed."""
    from zoneinfo import ZoneInfo

    try:
        zone = ZoneInfo(timezone)
    except (LookupError, ValueError, OSError):
        # OSError: a name like `America` is a folder of the database.
        raise ToolFailed("tool", f"There is no time zone '{timezone}'; names are like 'Europe/Berlin'.") from None
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=clock.now())
    return now.astimezone(zone).isoformat(timespec="seconds")


# --- what is offered


def _builtin(group: str, name: str, description: str, properties: Mapping[str, JSON], *required: str) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return Tool(name, description, parameters, ToolSource("builtin", group, name, repeatable=True))


BUILTIN_GROUPS: Mapping[str, tuple[Tool, ...]] = {
    "builtin::calculator": (
        _builtin(
            "builtin::calculator",
            "calculator",
            "Calculates an arithmetic expression. Use it instead of calculating in your head.",
            {
                "expression": {
                    "type": "string",
                    "description": "Numbers with + - * / // % ** and parentheses; the constants pi, e, tau; the "
                    f"functions {', '.join(_FUNCTIONS)} (angles in radians). For example: (3 + 4) * sqrt(2)",
                }
            },
            "expression",
        ),
    ),
    "builtin::clock": (
        _builtin(
            "builtin::clock",
            "current_time",
            "Tells the current date and time in ISO 8601.",
            {
                "timezone": {
                    "type": "string",
                    "description": "IANA name of the time zone, for example Europe/Berlin; UTC if left out",
                    "default": "UTC",
                }
            },
        ),
    ),
}
"""The tools of every deployment, by the id of their group."""
