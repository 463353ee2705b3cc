"""The deployed state machine, executed by the laptop's engine over tasks that do as they are told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from turnloom.adapters.stepfunctions import SECRET, SECRET_HEADER, StepFunctions, show_secret
from turnloom.local import engine
from turnloom.local.engine import KEPT_EXECUTIONS, Context, Functions
from turnloom.local.template import REGION, ROOT, STATE_MACHINE_ARN

PASSWORD = "open sesame"
TASKS = ("gather", "call_model", "call_tool", "run_shields", "finish", "fail")

# Every task keeps a log of its events and answers from a script of the thread: TASK to its answers in order.
TASK = """
import json
import threading
from pathlib import Path

TASK = Path(__file__).parent.name.removeprefix("turn_")
FOLDER = Path(__file__).parents[1]
turnstile = threading.Lock()
together = {}


def handler(event, context):
    thread = event["turn"]["thread"]
    log = FOLDER / f"{thread}.log"
    with turnstile:
        with log.open("a") as file:
            file.write(json.dumps([TASK, event]) + "\\n")
        nth = sum(json.loads(line)[0] == TASK for line in log.read_text().splitlines())
        answers = json.loads((FOLDER / f"{thread}.json").read_text()).get(TASK, [None])
        answer = answers[min(nth, len(answers)) - 1]
        barrier = together.setdefault(thread, threading.Barrier((answer or {}).get("together", 1)))
    if answer and "raise" in answer:
        raise type(answer["raise"], (Exception,), {})("as told")
    barrier.wait(20)
    return answer and {"turn": event["turn"], "calls": [], **answer}
"""


@dataclass
class Ended:
    """An execution that is over, with the (task, event) pairs of its tasks in order."""

    status: str
    error: str | None
    log: list[tuple[str, Any]]
    entered: int

    @property
    def tasks(self) -> list[str]:
        return [task for task, _ in self.log]


@dataclass
class Laptop:
    """An engine in a process of its own, on a folder of scripted tasks."""

    url: str
    folder: Path
    client: Any
    console: Path

    async def run(self, thread: str, start: str = "gather", calls: tuple[str, ...] = (), **script: Any) -> Ended:
        """Start an execution of that name in the state (start, calls) and wait for its end."""
        (self.folder / f"{thread}.json").write_text(json.dumps(script))
        await StepFunctions(STATE_MACHINE_ARN, self.client).start(thread, state(thread, start, *calls))
        return self.ended(thread)

    def ended(self, thread: str) -> Ended:
        arn = f"{STATE_MACHINE_ARN.replace('stateMachine', 'execution')}:{thread}"
        while (execution := self.client.describe_execution(executionArn=arn))["status"] == "RUNNING":
            time.sleep(0.02)
        history = self.client.get_execution_history(executionArn=arn, maxResults=1000)["events"]
        entered = sum(event["type"].endswith("StateEntered") for event in history)
        return Ended(execution["status"], execution.get("error"), self.log(thread), entered)

    def told(self) -> list[str]:
        """The lines on the console since the last time."""
        lines = self.console.read_text().splitlines()
        self.console.write_text("")
        return lines

    def log(self, thread: str) -> list[tuple[str, Any]]:
        path = self.folder / f"{thread}.log"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def state(thread: str, following: str, *calls: str) -> dict[str, Any]:
    turn = {"id": f"turn-{thread}", "api": "agents", "owner": "default", "thread": thread, "ordinal": 3, "leg": 0}
    return {"turn": turn, "next": following, "calls": list(calls)}


def to(following: str, *calls: str) -> dict[str, Any]:
    """A task's answer: what is due next."""
    return {"next": following, "calls": list(calls)}


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("functions")
    for name in TASKS:
        (folder / f"turn_{name}").mkdir()
        (folder / f"turn_{name}" / "handler.py").write_text(TASK)
    port, console = free_port(), folder / "console"
    with console.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "turnloom.local.engine", "--port", str(port), "--functions", str(folder)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "lib"), "HTTP_PROXY": "http://127.0.0.1:1", SECRET: PASSWORD},
            stderr=file,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        await_health(url, process)
        account = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
        client = boto3.client("stepfunctions", endpoint_url=url, region_name=REGION, **account)
        show_secret(client.meta.events, "sfn", PASSWORD)
        yield Laptop(url, folder, client, console)
    finally:
        process.terminate()
        ended = process.wait(20)
    assert ended == 0, "SIGTERM is the orderly way to end an engine"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_health(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health") as answer:
                assert json.load(answer) == {"status": "OK"}
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the engine did not start")


# --- the way of a turn


def test_an_engine_that_listens_has_run_an_execution(laptop: Laptop) -> None:
    assert laptop.ended("warm-up").status == "SUCCEEDED"


async def test_a_turn_with_tools_goes_gather_model_tools_model_finish(laptop: Laptop) -> None:
    ended = await laptop.run(
        "whole",
        gather=[to("call_model")],
        call_model=[to("call_tools", "call_1", "call_2"), to("finish")],
        finish=[to("done")],
    )
    turn = state("whole", "")["turn"]
    assert ended.status == "SUCCEEDED"
    assert ended.tasks == ["gather", "call_model", "call_tool", "call_tool", "call_model", "finish"]
    assert ended.log[0][1] == state("whole", "gather")
    assert ended.log[1][1] == state("whole", "call_model")
    assert {event["call"] for task, event in ended.log if task == "call_tool"} == {"call_1", "call_2"}
    assert all(event == {"turn": turn, "call": event["call"]} for task, event in ended.log if task == "call_tool")
    assert ended.log[4][1]["turn"] == turn
    assert ended.log[5][1] == state("whole", "finish")


async def test_the_calls_of_one_round_run_at_the_same_time(laptop: Laptop) -> None:
    calls = ("call_1", "call_2", "call_3", "call_4")
    ended = await laptop.run("together", "call_tools", calls, call_tool=[{"together": 4}], call_model=[to("done")])
    assert ended.status == "SUCCEEDED"
    assert ended.tasks == ["call_tool"] * 4 + ["call_model"]


async def test_when_something_else_is_due_after_tools_it_is_done(laptop: Laptop) -> None:
    ended = await laptop.run(
        "shielded", "call_tools", ("call_1",), call_model=[to("run_shields")], run_shields=[to("finish")]
    )
    assert ended.tasks == ["call_tool", "call_model", "run_shields", "finish"]


async def test_a_turn_that_awaits_its_client_is_put_to_rest(laptop: Laptop) -> None:
    ended = await laptop.run("resting", "await_client", finish=[to("done")])
    assert (ended.status, ended.tasks) == ("SUCCEEDED", ["finish"])
    assert ended.log[0][1]["next"] == "await_client"


async def test_a_turn_that_is_over_needs_no_task(laptop: Laptop) -> None:
    ended = await laptop.run("over", "done")
    assert (ended.status, ended.tasks) == ("SUCCEEDED", [])


async def test_a_tool_round_costs_three_transitions_and_one_for_each_call(laptop: Laptop) -> None:
    calls = ("call_1", "call_2", "call_3")
    without = await laptop.run("plain", "call_model", call_model=[to("finish")])
    with_tools = await laptop.run("round", "call_model", call_model=[to("call_tools", *calls), to("finish")])
    assert with_tools.entered - without.entered == 3 + len(calls)


# --- errors


@pytest.mark.parametrize("task", TASKS[:-1])
async def test_a_turn_that_someone_else_has_ends_quietly(laptop: Laptop, task: str) -> None:
    start = "call_tools" if task == "call_tool" else task
    laptop.told()
    ended = await laptop.run(f"moved-{task}", start, ("call_1",), **{task: [{"raise": "TurnMoved"}]})
    assert (ended.status, ended.tasks) == ("SUCCEEDED", [task])
    assert laptop.told() == []


@pytest.mark.parametrize("task", TASKS[:-1])
async def test_an_unexpected_error_reaches_the_failing_task_with_the_state(laptop: Laptop, task: str) -> None:
    start = "call_tools" if task == "call_tool" else task
    ended = await laptop.run(f"broken-{task}", start, ("call_1",), **{task: [{"raise": "ValueError"}] * 3})
    assert ended.tasks == [task, task, task, "fail"]
    told = ended.log[-1][1]
    assert {**told, "error": None} == {**state(f"broken-{task}", start, "call_1"), "error": None}
    assert told["error"]["Error"] == "ValueError"
    assert json.loads(told["error"]["Cause"])["errorMessage"] == "as told"
    assert (ended.status, ended.error) == ("FAILED", "TurnFailed")


@pytest.mark.parametrize("task", TASKS[:-1])
async def test_an_unexpected_error_is_told_with_the_traceback_of_the_task_and_little_else(
    laptop: Laptop, task: str
) -> None:
    start = "call_tools" if task == "call_tool" else task
    laptop.told()
    await laptop.run(f"noted-{task}", start, ("call_1",), **{task: [{"raise": "ValueError"}]})
    first, *traceback, last = laptop.told()
    assert first == f"turn_{task} failed with ValueError in turn turn-noted-{task}"
    assert traceback[0].startswith("Traceback") and traceback[-1].endswith("ValueError: as told")
    assert last.startswith("the state machine failed: ") and "TurnFailed" in last
    assert max(map(len, (first, *traceback, last))) < 300


async def test_failing_a_turn_that_someone_else_has_ends_quietly(laptop: Laptop) -> None:
    script = {"gather": [{"raise": "ValueError"}] * 3, "fail": [{"raise": "TurnMoved"}]}
    ended = await laptop.run("moved-on", **script)
    assert (ended.status, ended.tasks) == ("SUCCEEDED", [*["gather"] * 3, "fail"])


async def test_a_kind_of_action_that_has_no_branch_fails_the_turn(laptop: Laptop) -> None:
    ended = await laptop.run("unknown", "dance")
    assert ended.tasks == ["fail"]
    assert ended.log[0][1]["next"] == "dance"


@pytest.mark.parametrize("error", ["Lambda.TooManyRequestsException", "Sandbox.Timedout", "ClientError"])
async def test_a_task_that_was_not_carried_through_is_tried_again(laptop: Laptop, error: str) -> None:
    thread = "retried-" + error.replace(".", "-")
    ended = await laptop.run(thread, "call_model", call_model=[{"raise": error}, to("done")])
    assert (ended.status, ended.tasks) == ("SUCCEEDED", ["call_model", "call_model"])


# --- the engine


async def test_starting_a_name_again_runs_nothing_twice(laptop: Laptop) -> None:
    script = {"call_model": [to("finish")], "finish": [to("done")]}
    first = await laptop.run("once", "call_model", **script)
    again = await laptop.run("once", "call_model", **script)
    assert first.tasks == again.tasks == ["call_model", "finish"]


async def test_executions_that_have_ended_are_forgotten_in_time(laptop: Laptop) -> None:
    for number in range(KEPT_EXECUTIONS + 3):
        await laptop.run(f"forgotten-{number}", "done")
    kept = laptop.client.list_executions(stateMachineArn=STATE_MACHINE_ARN, maxResults=1000)["executions"]
    assert f"forgotten-{KEPT_EXECUTIONS + 2}" in {execution["name"] for execution in kept}
    assert len(kept) == KEPT_EXECUTIONS


# --- who is served

STEP_FUNCTIONS = {"x-amz-target": "AWSStepFunctions.ListStateMachines", "content-type": "application/x-amz-json-1.0"}
INVOCATION = "/2015-03-31/functions/turn_finish/invocations"


def asked(laptop: Laptop, path: str, body: bytes = b"{}", **headers: str) -> int:
    """The status of a POST with exactly these headers, and the secret unless they have another."""
    request = urllib.request.Request(f"{laptop.url}{path}", body, {SECRET_HEADER: PASSWORD, **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        return int(refusal.code)


@pytest.mark.parametrize("secret", ["", "open sesam", "open sesame "])
@pytest.mark.parametrize("path", ["/", INVOCATION, "/moto-api/reset", "/moto-api/data.json"])
def test_who_does_not_know_the_secret_is_refused(laptop: Laptop, path: str, secret: str) -> None:
    laptop.told()
    assert asked(laptop, path, **STEP_FUNCTIONS, **{SECRET_HEADER: secret}) == 403
    assert laptop.told() == []


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example"])
def test_a_name_that_is_not_this_machines_is_refused(laptop: Laptop, host: str) -> None:
    assert asked(laptop, "/", **STEP_FUNCTIONS, host=host) == 403


@pytest.mark.parametrize("function", ["list_openai_responses", "delete_agent", "turn_sweep", "nobody"])
def test_only_the_tasks_of_the_state_machine_can_be_invoked(laptop: Laptop, function: str) -> None:
    assert asked(laptop, f"/2015-03-31/functions/{function}/invocations") == 404


def test_nothing_but_step_functions_is_served(laptop: Laptop) -> None:
    assert asked(laptop, "/", **STEP_FUNCTIONS) == 200
    assert asked(laptop, "/", **{**STEP_FUNCTIONS, "x-amz-target": "DynamoDB_20120810.ListTables"}) == 404
    assert asked(laptop, "/", **{**STEP_FUNCTIONS, "content-type": "text/plain"}) == 404
    assert asked(laptop, "/moto-api/reset") == 404


def test_an_engine_without_a_secret_does_not_start() -> None:
    env = {name: value for name, value in os.environ.items() if name != SECRET}
    command = [sys.executable, "-m", "turnloom.local.engine", "--port", str(free_port())]
    ended = subprocess.run(command, env={**env, "PYTHONPATH": str(ROOT / "lib")}, capture_output=True, check=False)
    assert ended.returncode == 1 and SECRET in ended.stderr.decode()


# --- Lambda's Invoke


def invoke(folder: Path, source: str, payload: bytes = b'{"a": 1}') -> Any:
    (folder / "task").mkdir()
    (folder / "task" / "handler.py").write_text(source)
    return Functions(folder, {"task"}).invoke("task", payload)


def test_a_handler_is_told_what_lambda_tells(tmp_path: Path) -> None:
    told = ["function_name", "invoked_function_arn", "memory_limit_in_mb", "aws_request_id", "function_version"]
    source = f"def handler(event, context):\n    return [event, *(getattr(context, name) for name in {told})]\n"
    [event, name, arn, memory, request_id, version] = invoke(tmp_path, source).get_json()
    assert event == {"a": 1}
    assert (name, arn.rpartition(":")[2], memory, version) == ("task", "task", 1024, "$LATEST")
    assert request_id != Context("task").aws_request_id


def test_the_time_that_remains_runs_down(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context("task", started=100.0)
    monkeypatch.setattr(engine.time, "monotonic", lambda: 101.5)
    assert context.get_remaining_time_in_millis() == 898_500


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("def handler(event, context):\n    raise LookupError('gone')\n", "LookupError"),
        ("def handler(event, context):\n    return object()\n", "TypeError"),
        ("raise ImportError('gone')\n", "ImportError"),
    ],
)
def test_a_handler_that_fails_answers_as_lambda_does(tmp_path: Path, source: str, kind: str) -> None:
    answer = invoke(tmp_path, source)
    assert answer.status_code == 200
    assert answer.headers["X-Amz-Function-Error"] == "Unhandled"
    assert answer.get_json()["errorType"] == kind
    assert answer.get_json()["stackTrace"]


def test_a_function_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert Functions(tmp_path, {"nobody"}).invoke("nobody", b"{}").get_json()["errorType"] == "FileNotFoundError"
