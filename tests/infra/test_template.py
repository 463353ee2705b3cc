"""The deployment: what template.yaml makes of functions, routes, tables and permissions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cfnlint.api import ManualArgs, lint
from infra.parameters import page

from turnloom.adapters.dynamodb import table_schema
from turnloom.bootstrap import build
from turnloom.local import template
from turnloom.local.template import ROOT
from turnloom.storage import INDEXES
from turnloom.store.turns import LOG_SECONDS, days_of
from turnloom.usecases.services import Limits
from turnloom.wire.agents_api.routes import ROUTES as AGENTS_ROUTES
from turnloom.wire.neighbours import ROUTES as NEIGHBOURS_ROUTES
from turnloom.wire.responses_api.conversations import ROUTES as CONVERSATIONS_ROUTES
from turnloom.wire.responses_api.routes import ROUTES as RESPONSES_ROUTES

DRIVING = {"create_agent_turn", "resume_agent_turn", "create_openai_response", "get_openai_response"}
STREAMING = DRIVING | {"compact_openai_response"}

CONTRACT = """
POST   /v1/agents                                                          create_agent
GET    /v1/agents                                                          list_agents
GET    /v1/agents/{agent_id}                                               get_agent
DELETE /v1/agents/{agent_id}                                               delete_agent
POST   /v1/agents/{agent_id}/session                                       create_agent_session
GET    /v1/agents/{agent_id}/sessions                                      list_agent_sessions
GET    /v1/agents/{agent_id}/session/{session_id}                          get_agents_session
DELETE /v1/agents/{agent_id}/session/{session_id}                          delete_agents_session
POST   /v1/agents/{agent_id}/session/{session_id}/turn                     create_agent_turn
GET    /v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}           get_agents_turn
POST   /v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/resume    resume_agent_turn
POST   /v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/cancel    cancel_agents_turn
GET    /v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/step/{step_id}  get_agents_step
POST   /v1/responses                                                       create_openai_response
GET    /v1/responses                                                       list_openai_responses
GET    /v1/responses/{response_id}                                         get_openai_response
DELETE /v1/responses/{response_id}                                         delete_openai_response
GET    /v1/responses/{response_id}/input_items                             list_openai_response_input_items
POST   /v1/openai/v1/responses                                             create_openai_response
GET    /v1/openai/v1/responses                                             list_openai_responses
GET    /v1/openai/v1/responses/{response_id}                               get_openai_response
DELETE /v1/openai/v1/responses/{response_id}                               delete_openai_response
GET    /v1/openai/v1/responses/{response_id}/input_items                   list_openai_response_input_items
POST   /v1/responses/{response_id}/cancel                                  cancel_openai_response
POST   /v1/responses/input_tokens                                          count_openai_input_tokens
POST   /v1/responses/compact                                               compact_openai_response
POST   /v1/openai/v1/responses/{response_id}/cancel                        cancel_openai_response
POST   /v1/openai/v1/responses/input_tokens                                count_openai_input_tokens
POST   /v1/openai/v1/responses/compact                                     compact_openai_response
POST   /v1/conversations                                                   conversations
GET    /v1/conversations/{conversation_id}                                 conversations
POST   /v1/conversations/{conversation_id}                                 conversations
DELETE /v1/conversations/{conversation_id}                                 conversations
POST   /v1/conversations/{conversation_id}/items                           conversations
GET    /v1/conversations/{conversation_id}/items                           conversations
GET    /v1/conversations/{conversation_id}/items/{item_id}                 conversations
DELETE /v1/conversations/{conversation_id}/items/{item_id}                 conversations
GET    /v1/models                                                          models
POST   /v1/models                                                          models
GET    /v1/models/{model_id+}                                              models
DELETE /v1/models/{model_id+}                                              models
GET    /v1/openai/v1/models                                                models
GET    /v1/openai/v1/models/{model_id+}                                    models
GET    /v1/providers                                                       providers
GET    /v1/providers/{provider_id}                                         providers
GET    /v1/shields                                                         shields
GET    /v1/shields/{shield_id+}                                            shields
GET    /v1/health                                                          inspect
GET    /v1/version                                                         inspect
GET    /v1/inspect/routes                                                  inspect
GET    /v1/toolgroups                                                      toolgroups
POST   /v1/toolgroups                                                      toolgroups
GET    /v1/toolgroups/{toolgroup_id+}                                      toolgroups
DELETE /v1/toolgroups/{toolgroup_id+}                                      toolgroups
GET    /v1/tools                                                           tools
GET    /v1/tools/{tool_name+}                                              tools
GET    /v1/tool-runtime/list-tools                                         tool_runtime
POST   /v1/tool-runtime/invoke                                             tool_runtime
"""


def integrations(resources: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """The routes as API Gateway gets them, preflights aside: method, path, the function's folder, the integration."""
    folders = {function.name: function.folder for function in template.functions()}
    for path, methods in resources["AWS::ApiGateway::RestApi"]["Api"]["Body"]["paths"].items():
        for method, operation in methods.items():
            if method == "options":
                continue
            integration = operation["x-amazon-apigateway-integration"]
            function = re.search(r"\$\{(\w+)\.Arn\}", integration["uri"]["Fn::Sub"])
            assert function is not None
            yield method.upper(), path, folders[function[1]], integration


# --- functions and routes


def test_the_translated_template_passes_cfn_lint(translated: dict[str, Any]) -> None:
    found = lint(json.dumps(translated), config=ManualArgs(regions=["us-east-1"]))
    assert [f"{match.rule.id} {match.message} at {match.path}" for match in found] == []


def test_every_folder_in_functions_is_a_function_and_back() -> None:
    folders = {path.parent.name for path in (ROOT / "functions").glob("*/handler.py")}
    assert {function.folder for function in template.functions()} == folders


def test_a_function_is_named_after_its_folder() -> None:
    for function in template.functions():
        assert function.name == function.folder.title().replace("_", "")


def test_the_routes_are_those_of_the_contract(resources: dict[str, Any]) -> None:
    contract = {tuple(line.split()) for line in CONTRACT.strip().splitlines()}
    assert {(method, path, function) for method, path, function, _ in integrations(resources)} == contract


def test_the_routes_are_those_of_the_functions_own_apps(resources: dict[str, Any]) -> None:
    deployed = {(function, method, path) for method, path, function, _ in integrations(resources)}
    routes = [*AGENTS_ROUTES, *RESPONSES_ROUTES, *CONVERSATIONS_ROUTES, *NEIGHBOURS_ROUTES]
    assert {(route.function, route.method, route.path.replace(":path}", "+}")) for route in routes} == deployed


def test_exactly_the_streaming_functions_stream_and_have_the_time_that_the_gateway_waits(
    resources: dict[str, Any],
) -> None:
    names = {function.folder: function.name for function in template.functions()}
    for method, path, function, integration in integrations(resources):
        streams = integration.get("responseTransferMode") == "STREAM"
        streams_uri = integration["uri"]["Fn::Sub"].endswith("/response-streaming-invocations")
        assert streams == streams_uri == (function in STREAMING), (method, path)
        timeout = 900_000 if streams else 29_000
        assert integration.get("timeoutInMillis", 29_000) == timeout, (method, path)
        assert resources["AWS::Lambda::Function"][names[function]]["Timeout"] * 1000 == timeout, (method, path)


def test_what_streams_runs_under_the_web_adapter_and_nothing_else_does(resources: dict[str, Any]) -> None:
    functions = resources["AWS::Lambda::Function"]
    for function in template.functions():
        properties = functions[function.name]
        adapted = "LambdaAdapterLayerArm64" in json.dumps(properties["Layers"])
        invoke_mode = properties["Environment"]["Variables"].get("AWS_LWA_INVOKE_MODE")
        expected = (True, "response_stream", "run.sh") if function.folder in STREAMING else (False, None, None)
        handler = properties["Handler"] if properties["Handler"] != "handler.handler" else None
        assert (adapted, invoke_mode, handler) == expected, function.folder
        assert function.streams == (function.folder in STREAMING)


def test_the_sweeper_alone_runs_by_the_clock() -> None:
    scheduled = {function.folder: function.schedule for function in template.functions() if function.schedule}
    assert scheduled == {"turn_sweep": "rate(1 minute)"}


def test_functions_know_the_state_machine_by_the_name_it_has(resources: dict[str, Any]) -> None:
    [machine] = resources["AWS::StepFunctions::StateMachine"].values()
    name = machine["StateMachineName"]["Fn::Sub"]
    arn = f"arn:${{AWS::Partition}}:states:${{AWS::Region}}:${{AWS::AccountId}}:stateMachine:{name}"
    for properties in resources["AWS::Lambda::Function"].values():
        assert properties["Environment"]["Variables"]["TURNLOOM_STATE_MACHINE_ARN"]["Fn::Sub"] == arn
    assert arn in json.dumps(resources["AWS::IAM::ManagedPolicy"]["StartTurns"])


def test_every_setting_of_a_deployment_reaches_its_functions(translated: dict[str, Any]) -> None:
    settings = {
        "TURNLOOM_RETENTION_DAYS": "RetentionDays",
        "TURNLOOM_SESSION_DAYS": "SessionDays",
        "TURNLOOM_MAX_INFER_ITERS": "MaxInferIters",
        "TURNLOOM_HOSTS": "ToolHosts",
        "OPENAI_BASE_URL": "UpstreamUrl",
    }
    functions = [r for r in translated["Resources"].values() if r["Type"] == "AWS::Lambda::Function"]
    for properties in (function["Properties"] for function in functions):
        variables = properties["Environment"]["Variables"]
        assert {name: variables[name] for name in settings} == {name: {"Ref": p} for name, p in settings.items()}


def test_a_deployment_that_sets_nothing_has_the_limits_of_the_code(translated: dict[str, Any], tmp_path: Path) -> None:
    defaults = {name: str(parameter.get("Default", "")) for name, parameter in translated["Parameters"].items()}
    env = {
        "TURNLOOM_DATA_DIR": str(tmp_path),
        "TURNLOOM_RETENTION_DAYS": defaults["RetentionDays"],
        "TURNLOOM_SESSION_DAYS": defaults["SessionDays"],
        "TURNLOOM_MAX_INFER_ITERS": defaults["MaxInferIters"],
    }
    assert build(env).limits == Limits()


# --- state


def test_the_tables_are_those_that_the_stores_use() -> None:
    assert {table.name: table.indexes for table in template.tables()} == INDEXES


def test_a_deployed_table_is_made_as_the_laptop_makes_it(resources: dict[str, Any]) -> None:
    for properties in resources["AWS::DynamoDB::Table"].values():
        name = properties["TableName"]["Fn::Sub"].removeprefix("${AWS::StackName}-")
        schema = table_schema(name, INDEXES[name])
        assert {key: properties.get(key) for key in schema} == {**schema, "TableName": properties["TableName"]}
        assert properties["TimeToLiveSpecification"] == {"AttributeName": "ttl", "Enabled": True}
        assert properties["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}


def test_the_bucket_forgets_what_logs_left_after_the_logs_themselves(resources: dict[str, Any]) -> None:
    [rule] = [rule for rule in rules(resources) if rule["Prefix"] == "log/"]
    assert rule["Status"] == "Enabled" and rule["ExpirationInDays"] * 24 * 3600 > LOG_SECONDS


def test_the_rules_of_the_bucket_are_what_a_laptop_goes_by(resources: dict[str, Any]) -> None:
    for rule in rules(resources):
        assert days_of(rule["Prefix"] + "a#b/1") == rule["ExpirationInDays"]
    assert days_of("kept/a#b/1") is days_of("agent/1") is None


def test_the_bucket_has_a_rule_for_each_retention_as_rows_keep_the_one_they_were_made_with(
    translated: dict[str, Any], resources: dict[str, Any]
) -> None:
    days = [int(value) for value in translated["Parameters"]["RetentionDays"]["AllowedValues"] if value]
    told = {rule["Prefix"]: rule["ExpirationInDays"] for rule in rules(resources) if rule["Status"] == "Enabled"}
    assert days and told == {"log/": told["log/"], **{f"expiring/{number}/": number for number in days}}


def rules(resources: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = resources["AWS::S3::Bucket"]["Bucket"]["LifecycleConfiguration"]["Rules"]
    return found


PREFIX = {"Fn::If": ["HasTablesPrefix", {"Ref": "TablesPrefix"}, {"Fn::Sub": "${AWS::StackName}-"}]}


def test_functions_use_the_tables_of_the_stack_unless_others_are_named(resources: dict[str, Any]) -> None:
    for properties in resources["AWS::Lambda::Function"].values():
        assert properties["Environment"]["Variables"]["TURNLOOM_TABLES_PREFIX"] == PREFIX


def test_a_role_is_for_the_tables_that_its_function_uses(resources: dict[str, Any]) -> None:
    for statement in statements(list(resources["AWS::IAM::ManagedPolicy"].values())):
        if "dynamodb:" in json.dumps(statement["Action"]):
            given = statement["Resource"]
            for resource in given if isinstance(given, list) else [given]:
                text, values = resource["Fn::Sub"]
                assert values == {"Prefix": PREFIX} and ":table/${Prefix}" in text


def test_a_stack_can_go_on_with_what_an_earlier_one_left(resources: dict[str, Any]) -> None:
    bucket = {"Fn::If": ["HasBucketName", {"Ref": "BucketName"}, {"Ref": "Bucket"}]}
    seal = {"Fn::If": ["HasSealSecret", {"Ref": "SealSecretArn"}, {"Ref": "SealSecret"}]}
    for properties in resources["AWS::Lambda::Function"].values():
        variables = properties["Environment"]["Variables"]
        assert (variables["TURNLOOM_BUCKET"], variables["TURNLOOM_SEAL_SECRET"]) == (bucket, seal)
    for statement in statements(list(resources["AWS::IAM::ManagedPolicy"].values())):
        given = statement["Resource"]
        if "s3:" in json.dumps(statement["Action"]):
            assert all(
                one["Fn::Sub"][1] == {"Bucket": bucket} for one in (given if isinstance(given, list) else [given])
            )
    [opened] = statements([resources["AWS::IAM::ManagedPolicy"]["OpenSeals"]])
    assert opened["Resource"] == seal


@pytest.mark.parametrize(
    ("parameter", "taken", "refused"),
    [
        ("UpstreamSecretArn", ["", "arn:aws:secretsmanager:eu-west-1:1:secret:key-AbCdEf"], ["my-key", "sk-123"]),
        ("SealSecretArn", ["", "arn:aws-cn:secretsmanager:cn-north-1:1:secret:s"], ["seal"]),
        ("CertificateArn", ["", "arn:aws:acm:eu-west-1:1:certificate/1"], ["certificate/1", "arn:"]),
        ("AlarmTopicArn", ["", "arn:aws:sns:eu-west-1:1:topic"], ["me@a.example"]),
        ("KeyArn", ["", "arn:aws:kms:eu-west-1:1:key/1"], ["alias/mine", "1"]),
        ("UpstreamUrl", ["https://a.example/v1", "http://10.0.0.1:8000/v1"], ["", "a.example/v1", "https://a b"]),
        (
            "CorsOrigins",
            ["", "*", "https://a.example,http://localhost:3000"],
            ["https://a.example/", "a.example", "*,*"],
        ),
    ],
)
def test_a_parameter_that_could_not_work_is_refused_before_anything_is_made(
    parameter: str, taken: list[str], refused: list[str], translated: dict[str, Any]
) -> None:
    pattern = translated["Parameters"][parameter]["AllowedPattern"]
    assert all(re.fullmatch(pattern, text) for text in taken)
    assert not any(re.fullmatch(pattern, text) for text in refused)


def test_what_holds_data_outlives_the_stack_unless_told_otherwise(translated: dict[str, Any]) -> None:
    kept = {"AWS::DynamoDB::Table", "AWS::S3::Bucket", "AWS::SecretsManager::Secret"}
    for name, resource in translated["Resources"].items():
        if resource["Type"] in kept:
            assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == {"Ref": "DataAfterDelete"}, name
    assert translated["Parameters"]["DataAfterDelete"]["Default"] == "Retain"


# --- permissions


def test_every_call_that_an_adapter_makes_is_allowed_by_a_policy(resources: dict[str, Any]) -> None:
    allowed = set(actions(resources["AWS::IAM::ManagedPolicy"].values()))
    for adapter, service in {"dynamodb": "dynamodb", "blobs": "s3", "stepfunctions": "states"}.items():
        source = (ROOT / "lib/turnloom/adapters" / f"{adapter}.py").read_text()
        calls = set(re.findall(r"client\.([a-z_]+)", source)) - {"exceptions", "meta"}
        # What only the laptop and the tests do.
        calls -= {"create_table", "get_waiter", "update_time_to_live"}
        assert calls
        for call in calls:
            assert f"{service}:{call.title().replace('_', '')}" in allowed, f"{adapter} calls {call}"


def test_only_what_can_drive_or_take_over_a_turn_may_start_the_state_machine(resources: dict[str, Any]) -> None:
    may_start = {
        function.folder
        for function in template.functions()
        if {"Ref": "StartTurns"} in resources["AWS::IAM::Role"][f"{function.name}Role"]["ManagedPolicyArns"]
    }
    assert may_start == DRIVING | {"turn_sweep"}


def test_what_seals_or_opens_texts_for_clients_may_read_the_key(resources: dict[str, Any]) -> None:
    """Responses and items may hold sealed thoughts and summaries; a response that is gone holds nothing.

    Tool groups are sealed whole.
    """
    showing = {route.function for route in (*RESPONSES_ROUTES, *CONVERSATIONS_ROUTES)} - {"delete_openai_response"}
    showing |= {"toolgroups", "tools", "tool_runtime", "create_agent_turn", "resume_agent_turn"}
    for function in template.functions():
        policies = resources["AWS::IAM::Role"][f"{function.name}Role"].get("ManagedPolicyArns", ())
        assert function.folder not in showing or {"Ref": "OpenSeals"} in policies, function.folder


def test_no_policy_allows_a_wildcard(resources: dict[str, Any]) -> None:
    for action in actions(resources["AWS::IAM::ManagedPolicy"].values()):
        assert "*" not in action
    for statement in statements(resources["AWS::IAM::ManagedPolicy"].values()):
        assert statement["Resource"] != "*"


def statements(policies: Any) -> Iterator[dict[str, Any]]:
    """The statements of the policies, but for those that only a deployment with a key of its own has."""
    for policy in policies:
        yield from (one for one in policy["PolicyDocument"]["Statement"] if "Fn::If" not in one)


def actions(policies: Any) -> Iterator[str]:
    for statement in statements(policies):
        action = statement["Action"]
        yield from [action] if isinstance(action, str) else action


# --- reading it on the laptop


def test_a_template_elsewhere_is_read_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "template.yaml").write_text("""
Resources:
  Task: {Type: AWS::Serverless::Function, Properties: {CodeUri: functions/task/}}
  Machine:
    Type: AWS::Serverless::StateMachine
    Properties: {DefinitionUri: machine.json, DefinitionSubstitutions: {TaskArn: !GetAtt Task.Arn}}
""")
    (tmp_path / "machine.json").write_text('{"Resource": "${TaskArn}"}')
    assert template.functions(tmp_path) == [template.Function("Task", "task")]
    assert json.loads(template.definition(tmp_path))["Resource"].endswith(":function:task")


def test_a_substitution_that_is_missing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "template.yaml").write_text("""
Resources:
  Machine:
    Type: AWS::Serverless::StateMachine
    Properties: {DefinitionUri: machine.json, DefinitionSubstitutions: {}}
""")
    (tmp_path / "machine.json").write_text('{"Resource": "${TaskArn}"}')
    with pytest.raises(LookupError, match="TaskArn"):
        template.definition(tmp_path)


def test_the_page_of_parameters_is_the_templates() -> None:
    assert (ROOT / "docs/parameters.md").read_text() == page(template.read(ROOT / "template.yaml"))


def test_what_is_deployed_was_tested() -> None:
    deployed, tested = (set(re.findall(r"^\S+==[^ \\]+", lock, re.M)) for lock in map(_lock, ("runtime", "dev")))
    assert deployed and not deployed - tested


def _lock(name: str) -> str:
    return (ROOT / "infra/requirements" / f"{name}.lock").read_text()
