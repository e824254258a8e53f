"""Every call with every field at its extremes: an answer or an error in words, never an internal error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from support import AGENT, plain_channel, prepare

from patience import PATIENCE_SECONDS
from tachikoma.dev.stack import Stack
from tachikoma.exec.v1 import remote_execution_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["RemoteExecution"]
TEXTS = ("\0", "x" * 100_000, "a b", "9" * 400, "{}%s", "*" * 200, "{a,b}" * 30, "\u202e", "[1-3]", "a:b")
NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), -1, 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (1, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), -1, 2**63 - 1, 2**53),
    FieldDescriptor.CPPTYPE_UINT64: (1, 2**63, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: (float("inf"), float("-inf"), float("nan"), -1.0, 1e308),
    FieldDescriptor.CPPTYPE_ENUM: (-1, 99, 2**31 - 1),
    FieldDescriptor.CPPTYPE_BOOL: (True,),
}
#: All that a caller can be answered, besides a result.
ANSWERS = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ALREADY_EXISTS,
}  # fmt: skip
DONE = "job-done"
RUN = {"agent_id": AGENT, "command": ["/bin/true"], "timeout": {"seconds": 60}}
#: Messages with which a call gets further than to its first field.
VALID: dict[str, dict[str, Any]] = {
    "Execute": RUN, "ExecuteStream": RUN, "Submit": RUN, "Attach": {"id": DONE}, "Status": {"id": DONE},
    "Cancel": {"id": DONE}, "GetApproval": {"id": DONE}, "Approve": {"id": DONE}, "Reject": {"id": DONE},
    "List": {"include_ended": True}, "EnrollAgent": {"id": "web-9"}, "EnrollUser": {"name": "carol"},
    "LabelAgent": {"id": AGENT}, "NextDueTimes": {"name": "nightly"}, "ListScheduledRuns": {"name": "nightly"},
    "SubmitBatch": {"targets": [AGENT], "command": ["/bin/true"], "parallel": "1"},
    "PreviewBatch": {"targets": [AGENT], "command": ["/bin/true"], "parallel": "1"},
}  # fmt: skip


def values(field: FieldDescriptor) -> Iterator[Any]:
    """Yield values of a field that are none, too large or unusual."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        yield from TEXTS if field.type == FieldDescriptor.TYPE_STRING else (b"\xff", bytes(100_000))
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        assert field.message_type is not None
        yield {}
        for inner in field.message_type.fields:
            for value in wrapped(inner):
                yield {inner.name: value}
    else:
        yield from NUMBERS[field.cpp_type]


def wrapped(field: FieldDescriptor) -> Iterator[Any]:
    """Yield the values of a field as it takes them: a map, a list, or one."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from ({text: text} for text in TEXTS)
        yield {str(number): "x" for number in range(3000)}
    elif field.is_repeated:
        for value in values(field):
            yield [value]
        yield [next(values(field))] * 3000
    else:
        yield from values(field)


def messages(method: MethodDescriptor) -> Iterator[Message]:
    """Yield requests of a method, each with one value that is none."""
    kind = message_factory.GetMessageClass(method.input_type)
    bases = [{}, *([VALID[method.name]] if method.name in VALID else [])]
    for base in bases:
        yield kind(**base)
        # The fields of a request that several methods take are read by one function.
        for field in () if method.name in ("ExecuteStream", "Submit", "SubmitBatch") else method.input_type.fields:
            for value in wrapped(field):
                yield kind(**{**base, field.name: value})


def answer(channel: grpc.Channel, method: MethodDescriptor, message: Message) -> grpc.StatusCode:
    """Return the code with which a call ends."""
    path = f"/{SERVICE.full_name}/{method.name}"
    output = message_factory.GetMessageClass(method.output_type)
    given = {"request_serializer": type(message).SerializeToString, "response_deserializer": output.FromString}
    try:
        if method.client_streaming:
            list(channel.stream_stream(path, **given)(iter([message]), timeout=PATIENCE_SECONDS))
        elif method.server_streaming:
            list(channel.unary_stream(path, **given)(message, timeout=PATIENCE_SECONDS))
        else:
            channel.unary_unary(path, **given)(message, timeout=PATIENCE_SECONDS)
    except grpc.RpcError as error:
        return cast("grpc.Call", error).code()
    return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[grpc.Channel]:
    folder = tmp_path_factory.mktemp("values")
    (folder / "schedules.yaml").write_text(
        f"schedules: [{{name: nightly, cron: '0 3 1 1 *', agentId: {AGENT}, request: {{command: [/bin/true]}}}}]\n"
    )
    environment = {
        "TACHIKOMA_RECORDINGS": str(folder / "recordings"), "TACHIKOMA_SCHEDULES": str(folder / "schedules.yaml")
    }  # fmt: skip
    (folder / "recordings").mkdir()
    with Stack(prepare(folder), redis_server=redis_server, environment=environment) as stack:
        with plain_channel(stack, stack.identity("user")) as connected:
            done = pb.ExecRequest(**{**RUN, "id": DONE})
            assert answer(connected, SERVICE.methods_by_name["Execute"], done) is grpc.StatusCode.OK
            yield connected
        assert stack.orchestrator.alive


@pytest.mark.parametrize("method", list(SERVICE.methods), ids=lambda method: method.name)
def test_a_value_of_any_size_is_answered_in_words(channel: grpc.Channel, method: MethodDescriptor) -> None:
    for message in messages(method):
        found = answer(channel, method, message)
        assert found in ANSWERS, f"{found}: {method.name} {str(message)[:300]}"
