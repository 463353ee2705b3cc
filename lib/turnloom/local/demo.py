"""`make demo`: a conversation of three turns with server tools and a tool of the client's own, told step by step.

Talks to the server at TURNLOOM_URL, or the one on PORT, or starts a fresh one and stops it afterwards. Where a key is
needed, it is the one in LLAMA_STACK_API_KEY.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

SHOPPING = {"apples": 3, "bread": 1, "coffee": 2}
QUESTIONS = (
    "What time is it now in Asia/Tokyo?",
    "Please calculate 12 * (3 + 4) with the calculator.",
    "Use the shopping_list tool: how many apples are on my list?",
)

console = Console(highlight=False)


def shopping_list(item: str) -> str:
    """Look up how many of an item are on the shopping list.

    :param item: the name of the item, e.g. apples
    """
    return json.dumps({"item": item, "count": SHOPPING.get(item.strip().lower(), 0)})


CLIENT_TOOL = {
    "name": "shopping_list",
    "description": "Look up how many of an item are on the shopping list.",
    "parameters": [
        {"name": "item", "parameter_type": "string", "description": "The item, e.g. apples", "required": True}
    ],
}


def main() -> int:
    """Run the conversation, then read the session back and compare it with what was streamed."""
    with server() as url, key_explained():
        from llama_stack_client import LlamaStackClient

        logging.getLogger("httpx").setLevel(logging.WARNING)
        client = LlamaStackClient(base_url=url, timeout=600)
        model = os.environ.get("TURNLOOM_MODEL") or next(
            model.identifier for model in client.models.list() if model.api_model_type == "llm"
        )
        console.print(f"[dim]{url}, model {model}[/dim]")
        config = {
            "model": model,
            "instructions": "You are a helpful assistant. Use the tools. Answer in one short sentence.",
            "toolgroups": ["builtin::calculator", "builtin::clock"],
            "client_tools": [CLIENT_TOOL],
            "enable_session_persistence": True,
        }
        agent_id = client.agents.create(agent_config=config).agent_id  # type: ignore[arg-type]
        session_id = client.agents.session.create(agent_id, session_name="demo").session_id
        answers = [ask(client, agent_id, session_id, question) for question in QUESTIONS]
        session = client.agents.session.retrieve(session_id, agent_id=agent_id)
        stored = [turn.output_message.content for turn in session.turns]
        same = stored == answers
        console.print(
            f"\nThe session has {len(stored)} turns; read back, they are {'the same' if same else 'DIFFERENT'}."
        )
        return 0 if same else 1


def ask(client: Any, agent_id: str, session_id: str, question: str) -> str:
    """One turn, streamed; tools that are the client's are run here and the turn resumed, until it is complete."""
    console.print(f"\n[bold]you>[/bold] {escape(question)}")
    stream = client.agents.turn.create(
        session_id, agent_id=agent_id, messages=[{"role": "user", "content": question}], stream=True
    )
    while True:
        turn = tell(stream)
        if not turn.output_message.tool_calls:
            return str(turn.output_message.content)
        responses = [answer(call) for call in turn.output_message.tool_calls]
        stream = client.agents.turn.resume(
            turn.turn_id, agent_id=agent_id, session_id=session_id, tool_responses=responses, stream=True
        )


def answer(call: Any) -> dict[str, Any]:
    """Run the client's tool."""
    arguments = json.loads(call.arguments_json)
    console.print(f"[magenta]client runs {escape(call.tool_name)}({escape(call.arguments_json)})[/magenta]")
    return {"call_id": call.call_id, "tool_name": call.tool_name, "content": shopping_list(**arguments)}


def tell(stream: Any) -> Any:
    """Print a stream as it comes; its last frame has the turn."""
    for chunk in stream:
        if chunk.event is None:
            raise SystemExit(f"The turn failed: {chunk.error['message']}")
        payload = chunk.event.payload
        match payload.event_type:
            case "step_start" if payload.step_type == "inference":
                console.print("[cyan]model>[/cyan] ", end="")
            case "step_progress" if payload.delta.type == "text":
                console.print(escape(payload.delta.text), end="")
            case "step_progress" if payload.delta.parse_status == "succeeded":
                call = payload.delta.tool_call
                console.print(f"[yellow]calls {escape(call.tool_name)}({escape(call.arguments_json)})[/yellow]", end="")
            case "step_complete":
                tell_step(payload.step_details)
            case "turn_complete" | "turn_awaiting_input":
                return payload.turn
    raise SystemExit("The stream ended without a turn.")


def tell_step(step: Any) -> None:
    """Finish the line of an inference, or show what a tool gave back."""
    console.print()
    if step.step_type == "tool_execution":
        for response in step.tool_responses:
            console.print(f"[green]tool> {escape(response.tool_name)}: {escape(str(response.content))}[/green]")


@contextmanager
def server() -> Iterator[str]:
    """The address of a running server, or of one that lives as long as the demo."""
    port = os.environ.get("PORT", "8321")
    url = os.environ.get("TURNLOOM_URL") or f"http://127.0.0.1:{port}"
    if healthy(url):
        yield url
        return
    console.print("[dim]No server is running; starting one for the demo.[/dim]")
    # A line for each request would fall among those of the conversation.
    env = {"TURNLOOM_LOG_LEVEL": "WARNING", **os.environ}
    process = subprocess.Popen([sys.executable, "-m", "turnloom.local"], env=env)
    try:
        while not healthy(url):
            if process.poll() is not None:
                raise SystemExit("The server did not start.")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def key_explained() -> Iterator[None]:
    """Says what to do where the server refuses the key, or that there is none."""
    from llama_stack_client import AuthenticationError

    try:
        yield
    except AuthenticationError as refusal:
        told = 'make keys ARGS="create --owner me", then LLAMA_STACK_API_KEY=... make demo'
        raise SystemExit(f"The server asks for a key: {told}") from refusal


def healthy(url: str) -> bool:
    """Whether a Turnloom answers there."""
    try:
        with urllib.request.urlopen(f"{url}/v1/health", timeout=2) as found:
            return bool(json.load(found).get("status") == "OK")
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    sys.exit(main())
