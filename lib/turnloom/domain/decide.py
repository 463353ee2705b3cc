"""What a turn does next: the whole policy of the loop, without doing any of it.

    decide(turn, spec) -> Action

    gather -> [input shields] -> [calls that the client has allowed]
           -> model -> calls for the server? run them, back to the model
                    -> calls for the client? [output shields] rest
                    -> none: [output shields] finish

The limits: at most `spec.max_inferences` model calls in a turn over all its legs, but at least one in each leg; an
answer cut short (`length`, `content_filter`) ends the turn and none of its calls is run.
"""

from __future__ import annotations

from turnloom.domain.action import Action, AwaitClient, CallModel, CallTools, Finish, Gather, RunShields
from turnloom.domain.event import Touchpoint
from turnloom.domain.message import Spec
from turnloom.domain.turn import Call, Inference, ShieldCheck, Turn


def decide(turn: Turn, spec: Spec) -> Action:
    """The next action of a turn that is in progress."""
    if not turn.gathered and _to_gather(spec):
        return Gather()
    if turn.violation is not None:
        return Finish()
    if spec.input_shields and not _checked(turn, "user-input"):
        return RunShields("user-input", spec.input_shields)
    inference = turn.last_inference
    if turn.leg_inferences == 0 or inference is None or inference.finish is None:
        allowed = tuple(call.call_id for call in turn.open_calls if call.request is not None)
        return CallTools(allowed) if allowed else _call_model(turn)
    action = _after_inference(turn, spec, inference)
    return Finish("out_of_tokens") if isinstance(action, CallModel) and _spent(turn, spec) else action


def client_calls(turn: Turn, spec: Spec) -> tuple[Call, ...]:
    """The open calls that are the client's to answer or to allow; one it could not read is answered by the server."""
    return tuple(call for call in turn.open_calls if _is_the_clients(call, spec))


def _after_inference(turn: Turn, spec: Spec, inference: Inference) -> Action:
    if inference.finish == "length":
        return _shielded(turn, spec, Finish("out_of_tokens"))
    if inference.finish == "content_filter":
        return _shielded(turn, spec, Finish("content_filter"))
    pending = turn.open_calls
    for_client = client_calls(turn, spec)
    for_server = tuple(call.call_id for call in pending if call not in for_client)
    exhausted = len(turn.inferences) >= spec.max_inferences
    if pending and exhausted and not spec.runs_last_calls:
        return _shielded(turn, spec, Finish("max_infer_iters"))
    if for_server:
        return CallTools(for_server)
    if for_client:
        return _shielded(turn, spec, AwaitClient() if spec.suspends_for_client else Finish())
    if inference.calls:
        return Finish("max_infer_iters") if exhausted and spec.runs_last_calls else _call_model(turn)
    return _shielded(turn, spec, Finish())


def _to_gather(spec: Spec) -> bool:
    return bool(spec.documents or spec.servers or spec.allowed_calls or spec.compact_above is not None)


def _call_model(turn: Turn) -> CallModel:
    return CallModel(forced=not turn.inferences)


def _spent(turn: Turn, spec: Spec) -> bool:
    """Whether the model has written all the tokens that it may write in this turn."""
    return spec.max_tokens is not None and turn.usage.output_tokens >= spec.max_tokens


def _shielded(turn: Turn, spec: Spec, then: Action) -> Action:
    if spec.output_shields and not _checked(turn, "assistant-output"):
        return RunShields("assistant-output", spec.output_shields)
    return then


def _checked(turn: Turn, touchpoint: Touchpoint) -> bool:
    return any(
        isinstance(step, ShieldCheck) and step.touchpoint == touchpoint and step.leg == turn.leg for step in turn.steps
    )


def _is_the_clients(call: Call, spec: Spec) -> bool:
    readable = not spec.checks_client_arguments or call.parsed() is not None
    return call.runner == "approval" or (call.runner == "client" and readable)
