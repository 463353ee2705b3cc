"""Where the items of a response stand, so that everybody counts and names them alike.

The k-th item that a turn puts out has position k; its input items are counted from `INPUT_POSITION` on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from turnloom.domain import ids
from turnloom.domain.event import Runner
from turnloom.domain.message import JSON, ToolKind
from turnloom.domain.turn import Call, Compaction, Inference, Listing, Resumption, Said, Step, ToolRun, Turn

INPUT_POSITION = 1 << 19
"""The first position of input items: half of what an item id can count, so that no output item gets there."""

MOST_ID_CHARACTERS = 64

PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fc",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctc",
    "mcp_list_tools": "mcpl",
    "mcp_call": "mcp",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpr",
    "file_search_call": "fs",
    "web_search_call": "ws",
    "code_interpreter_call": "ci",
    "compaction": "cmp",
    "compaction_trigger": "cmpt",
    "additional_tools": "adt",
}

# What stands in the place of something that was taken out: it tells nothing, and counts as one item.
BLANK_ITEM: JSON = {"type": "deleted"}
BLANK_BLOCK = Said("reasoning", "")
BLANK_STEP = Inference(0, (BLANK_BLOCK,), 0, "stop")

CALL_OUTPUTS = ("function_call_output", "custom_tool_call_output")


@dataclass(frozen=True, slots=True)
class Placed:
    """The item of type `kind` at a position of a turn's output: all of a step, or these blocks of it."""

    position: int
    kind: str
    step: Step
    blocks: tuple[Said | Call, ...] = ()


def placed(turn: Turn) -> Iterator[Placed]:
    """The output items of a turn, also those that are still open, in their order."""
    for position, (kind, step, blocks) in enumerate(_laid_out(turn)):
        yield Placed(position, kind, step, blocks)


def call_kind(runner: Runner, kind: ToolKind) -> str:
    """The type of the item that shows a call; a call that is shown to nobody has none."""
    match runner:
        case "client":
            return "custom_tool_call" if kind == "custom" else "function_call"
        case "server":
            return "mcp_call"
        case "approval":
            return "mcp_approval_request"
        case "unknown":
            return ""


def item_id(kind: str, response: str, position: int) -> str:
    """The id of the item of this type at this position of a response."""
    return ids.item_id(PREFIXES.get(kind, "msg"), response, position)


def lost_item_id(response: str) -> str:
    """The id of the one item that stands for all of a response, or of other items, whose content is lost."""
    return item_id("message", response, INPUT_POSITION)


def is_item_id(identifier: str) -> bool:
    """Whether a client may name an item so: not too long, and a segment of a path that every reader leaves as it is."""
    return len(identifier) <= MOST_ID_CHARACTERS and "/" not in identifier and identifier not in ("", ".", "..")


def input_ids(turn: Turn, taken: AbstractSet[str] = frozenset()) -> list[str]:
    """The ids of the turn's own input items: the client's, if it may be one and is new; `taken` ones are not."""
    used = set(taken)
    found: list[str] = []
    for place, given in enumerate(turn.input):
        identifier = given.get("id") or ""
        if identifier in used or not is_item_id(identifier):
            identifier = item_id(given["type"], turn.id, INPUT_POSITION + place)
        used.add(identifier)
        found.append(identifier)
    return found


def item_positions(turn: Turn, taken: AbstractSet[str] = frozenset()) -> dict[str, int]:
    """The ids of all items of the turn, its input first, each with its position."""
    given = {name: INPUT_POSITION + place for place, name in enumerate(input_ids(turn, taken))}
    return given | {item_id(item.kind, turn.id, item.position): item.position for item in placed(turn)}


def without(turns: Sequence[Turn], removed: Sequence[Collection[int]]) -> list[Turn]:
    """The turns without the items at these positions, and without what is left of a call whose other half went.

    Nothing is told of them any more, but their places stay, so that the items which are left keep their ids.
    """
    gone = {call for turn, positions in zip(turns, removed, strict=True) for call in _calls_at(turn, positions)}
    return [_thinned(turn, positions, gone) for turn, positions in zip(turns, removed, strict=True)]


def _laid_out(turn: Turn) -> Iterator[tuple[str, Step, tuple[Said | Call, ...]]]:
    for step in turn.steps:
        match step:
            case Listing():
                yield "mcp_list_tools", step, ()
            case Compaction():
                yield "compaction", step, ()
            case Resumption():
                yield from (("mcp_call", step, (call,)) for call in step.calls if call.runner != "unknown")
            case Inference():
                for blocks in _item_blocks(step):
                    yield _block_kind(blocks[0]), step, tuple(blocks)
            case _:
                continue


def _item_blocks(inference: Inference) -> Iterator[list[Said | Call]]:
    """The blocks of each item: text and refusals next to each other are one message; unknown calls are no item."""
    group: list[Said | Call] = []
    for block in inference.blocks:
        joins = group and _in_message(group[-1]) and _in_message(block)
        if group and not joins:
            yield group
            group = []
        if not isinstance(block, Call) or block.runner != "unknown":
            group.append(block)
    if group:
        yield group


def _in_message(block: Said | Call) -> bool:
    return isinstance(block, Said) and block.block != "reasoning"


def _block_kind(block: Said | Call) -> str:
    if isinstance(block, Call):
        return call_kind(block.runner, block.kind)
    return "reasoning" if block.block == "reasoning" else "message"


# --- leaving items out


def _calls_at(turn: Turn, positions: Collection[int]) -> Iterator[str]:
    for item in placed(turn):
        if item.position in positions:
            yield from (block.call_id for block in item.blocks if isinstance(block, Call))
    for place, given in enumerate(turn.input):
        if INPUT_POSITION + place in positions and given.get("call_id"):
            yield given["call_id"]


def _thinned(turn: Turn, positions: Collection[int], gone: AbstractSet[str]) -> Turn:
    if not positions and not gone:
        return turn
    out = [item for item in placed(turn) if item.position in positions or _is_gone(item.blocks, gone)]
    blanks: dict[int, Said | None] = {id(block): None for item in out for block in item.blocks}
    blanks |= {id(item.blocks[0]): BLANK_BLOCK for item in out if item.blocks}
    whole = {id(item.step) for item in out if not item.blocks}
    steps = (BLANK_STEP if id(step) in whole else _thinned_step(step, blanks, gone) for step in turn.steps)
    given = (
        BLANK_ITEM if INPUT_POSITION + place in positions or item.get("call_id") in gone else item
        for place, item in enumerate(turn.input)
    )
    return replace(turn, input=tuple(given), steps=tuple(step for step in steps if step is not None))


def _thinned_step(step: Step, blanks: Mapping[int, Said | None], gone: AbstractSet[str]) -> Step | None:
    match step:
        case Inference():
            left = (blanks.get(id(block), block) for block in step.blocks)
            return replace(step, blocks=tuple(block for block in left if block is not None))
        case ToolRun():
            return None if step.call.call_id in gone else step
        case _:
            return step


def _is_gone(blocks: Sequence[Said | Call], gone: AbstractSet[str]) -> bool:
    return any(isinstance(block, Call) and block.call_id in gone for block in blocks)
