"""How the words of `tachikoma run` become a request."""

from __future__ import annotations

import asyncio
import io
import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tachikoma import ExecOutput, ExecResponse, ExecState, OutputKind
from tachikoma.cli import batch_view
from tachikoma.cli.commands import run
from tachikoma.cli.output import Output
from tachikoma.errors import InvalidRequest, NotFound, PermissionDenied
from tachikoma.vocabulary.batches import BatchRequest, BatchResult, BatchState, BatchStatus, BatchUpdate, TargetState

#: Letters for digits, so that answers differ also where numbers are ignored.
LETTERS = bytes.maketrans(b"0123456789", b"ghijklmnop")


@pytest.mark.parametrize(
    ("given", "targets", "command"),
    [
        (["web*", "--", "uptime", "-p"], ("web*",), ["uptime", "-p"]),
        (["web*", "!web7", "--", "grep", "--", "x"], ("web*", "!web7"), ["grep", "--", "x"]),
        (["web*", "uptime", "-p"], ("web*",), ["uptime", "-p"]),
        (["web*"], ("web*",), []),
        ([], (), []),
    ],
)
def test_targets_are_before_the_dashes(given: list[str], targets: tuple[str, ...], command: list[str]) -> None:
    assert run._split(given, None, elsewhere=False) == (targets, command)


def test_with_a_file_all_words_are_the_command(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("web[1-3] # three\nrole=db\n")
    assert run._split(["grep", "--", "x"], file, elsewhere=False) == (("web[1-3]", "role=db"), ["grep", "--", "x"])
    assert run._split(["uptime"], None, elsewhere=True) == ((), ["uptime"])
    assert run._split([], None, elsewhere=True) == ((), [])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="No such file"):
        run._split(["x"], tmp_path / "none", elsewhere=False)
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(InvalidRequest, match="bytes"):
        run._split(["x"], tmp_path / "bytes", elsewhere=False)


def test_states_of_a_retry() -> None:
    for text in ("failed", "lost, failed", "failed,timed-out"):
        assert batch_view.states_of(text, "--retry") == ()
    assert batch_view.states_of("timed-out,not_started", "--retry") == (
        TargetState.TIMED_OUT,
        TargetState.NOT_STARTED,
    )
    with pytest.raises(InvalidRequest, match="'odd' is no state; write failed"):
        batch_view.states_of("odd", "--retry")


def test_a_request_that_breaks_a_bound_is_one_message() -> None:
    with pytest.raises(InvalidRequest, match="stop"):
        run._request({"targets": ("a",), "command": ["x"], "stop_on": ("ODD",)})
    request = run._request({"targets": ("a",), "command": ["x"], "parallel": None, "wave": "5"})
    assert (request.parallel, request.wave) == ("50", "5")


def batch(**values: Any) -> BatchStatus:
    """A batch of one target that has ended."""
    usual = {
        "id": "b-1", "state": BatchState.DONE, "requested_by": "spiffe://x/user/alice", "command": ("true",),
        "digest": "00" * 32, "total": 1, "totals": {TargetState.SUCCEEDED: 1}, "failures": 0, "reason": "",
        "submit_time": datetime.now(UTC), "end_time": datetime.now(UTC),
    }  # fmt: skip
    return BatchStatus.model_validate(usual | values)


UPDATES = (
    BatchUpdate(result=BatchResult(agent_id="web-1", exec_id="e-1", state=TargetState.SUCCEEDED)),
    BatchUpdate(status=batch()),
)  # fmt: skip


def test_jsonl_is_one_object_a_line_and_json_is_one_document(run: Any, client: Any) -> None:
    client.answers["run"] = UPDATES
    lines = [json.loads(line) for line in run("run", "-o", "jsonl", "web-1", "--", "true").out.splitlines()]
    assert [(line["result"] is None, line["status"] is None) for line in lines] == [(False, True), (True, False)]
    document = json.loads(run("run", "-o", "json", "web-1", "--", "true").out)
    assert (document["batch"]["id"], [item["agentId"] for item in document["results"]]) == ("b-1", ["web-1"])
    assert run("run", "-o", "name", "web-1", "--", "true").out == "b-1\n"


def equal(agent: str, stdout: bytes | None) -> BatchUpdate:
    """A result as a watched batch sends it: with output in the first of equal results."""
    output = {"stdout": stdout, "stderr": None if stdout is None else b"", "stdout_sha256": "ab" * 32}
    return BatchUpdate(
        result=BatchResult(agent_id=agent, exec_id="e", state=TargetState.SUCCEEDED, stdout_bytes=2, **output)
    )


def test_json_contains_equal_outputs_once_and_text_shows_each(run: Any, client: Any) -> None:
    updates = (equal("web-1", b"x\n"), equal("web-2", None), BatchUpdate(status=batch(total=2)))
    client.answers["run"] = updates
    arguments = ("web-[1-2]", "--", "true")
    document = json.loads(run("run", "-o", "json", *arguments).out)["results"]
    lines = [json.loads(line)["result"] for line in run("run", "-o", "jsonl", *arguments).out.splitlines()[:2]]
    for results in (document, lines):
        assert [(item["stdout"], item["stdoutSha256"]) for item in results] == [("eAo=", "ab" * 32), (None, "ab" * 32)]
    assert run("run", *arguments).out.splitlines()[:2] == ["web-1  x", "web-2  x"]


class Nowhere(io.StringIO):
    """Standard output that is not kept."""

    def write(self, text: str) -> int:
        return len(text)


@pytest.mark.parametrize(
    ("how", "targets"),
    # Similar answers take longer, and 131 MB are already too much.
    [({}, 10_000), ({"group": True}, 10_000), ({"group": True, "similar": True}, 2_000)],
)
@pytest.mark.slow
def test_many_large_different_answers_take_little_memory(
    how: dict[str, bool], targets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest number of bytes that are in use at once: 655 MB come, of which 32 MiB are kept."""
    options = {"group": False, "diff": False, "similar": False, "quiet": True} | how

    def update(number: int) -> BatchUpdate:
        body = (b"host %08x " % number).translate(LETTERS) * (64 * 1024 // 14)
        values = {"exec_id": f"e-{number}", "state": TargetState.SUCCEEDED, "stdout_bytes": len(body)}
        return BatchUpdate(
            result=BatchResult(
                agent_id=f"web-{number}", stdout=body, stderr=b"", stdout_sha256=f"{number:064x}", **values
            )
        )

    async def watch() -> tuple[int, int]:
        view = run._View(run._Form(Output.TEXT, **options))
        tracemalloc.start()
        for number in range(targets):
            view.update(update(number))
        view.update(BatchUpdate(status=batch(total=targets)))
        view.end()
        assert len(view.results) == targets
        return tracemalloc.get_traced_memory()

    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", Nowhere())
        try:
            current, most = asyncio.run(watch())
        finally:
            tracemalloc.stop()
    assert current <= most < 100_000_000


def test_an_error_is_json_for_programs(run: Any, client: Any) -> None:
    client.answers["run"] = PermissionDenied("policy denies it")
    done = run("run", "-o", "json", "web-1", "--", "true")
    assert (done.code, json.loads(done.err)["error"]["message"]) == (125, "policy denies it")


def test_a_retry_takes_the_beginning_of_a_batch_id(run: Any, client: Any) -> None:
    earlier = batch(id="4f1c2a9d8e7b")

    def one(batch_id: str) -> BatchStatus:
        if batch_id != earlier.id:
            raise NotFound("there is no such batch")
        return earlier

    client.answers |= {"batch": one, "batches": (earlier,), "submit_batch": batch()}
    assert run("run", "--detach", "--retry", "4f1c", "failed").out == "b-1\n"
    assert client.calls[-1][1][0].retry_of == "4f1c2a9d8e7b"


@pytest.fixture
def earlier(client: Any) -> Any:
    """A client that knows a batch, and accepts another one."""
    client.answers |= {"batch": batch(id="4f1c2a9d8e7b"), "submit_batch": batch(), "run": UPDATES}
    return client


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {}),
        (("failed",), {}),
        (("unreachable,lost",), {"retry_states": (TargetState.UNREACHABLE, TargetState.LOST)}),
        (("lost", "-p", "7"), {"retry_states": (TargetState.LOST,), "parallel": "7"}),
        (
            ("--canary", "1", "--wave", "25%", "--stop-after", "3", "--stop-on", "denied", "--gate", "lb1", "true"),
            {
                "canary": 1, "wave": "25%", "stop_after": "3", "stop_on": ("DENIED",),
                "gate": {"agent_id": "lb1", "command": ["true"]},
            },
        ),
    ],
)  # fmt: skip
def test_batches_retry_runs_the_earlier_command_with_new_rules(
    run: Any, earlier: Any, arguments: tuple[str, ...], expected: dict[str, Any]
) -> None:
    done = run("batches", "retry", "4f1c2a9d8e7b", *arguments, "--id", "again", "--detach")
    assert (done.code, done.out) == (0, "b-1\n")
    name, (request,), _ = earlier.calls[-1]
    assert name == "submit_batch"
    assert request == BatchRequest.model_validate({"id": "again", "retry_of": "4f1c2a9d8e7b"} | expected)


def test_batches_retry_shows_answers_as_run_does(run: Any, earlier: Any) -> None:
    document = json.loads(run("batches", "retry", "-o", "json", "4f1c2a9d8e7b").out)
    assert document["batch"]["id"] == "b-1"
    earlier.answers["run"] = PermissionDenied("policy denies it")
    assert run("batches", "retry", "4f1c2a9d8e7b").code == 125
    assert run("batches", "retry", "4f1c2a9d8e7b", "odd").code == 125


@pytest.mark.parametrize("option", [("--timeout", "5s"), ("--cwd", "/"), ("--user", "root"), ("--env", "A=1"), ("-i",)])
def test_a_retry_takes_no_option_of_the_earlier_command(run: Any, earlier: Any, option: tuple[str, ...]) -> None:
    assert run("batches", "retry", "4f1c2a9d8e7b", *option).code == 2
    done = run("run", "--retry", "4f1c2a9d8e7b", "failed", *option)
    assert done.code == 125
    assert "a retry without a command has those of its batch; add the command" in done.err
    assert run("run", "--detach", "--retry", "4f1c2a9d8e7b", "failed", *option, "true").code == 0


def test_a_gate_is_an_agent_and_a_command_as_a_shell_splits_it() -> None:
    assert run._gate(("lb1", "curl -f 'http://x/a b'"), "5s") == {
        "agent_id": "lb1", "command": ["curl", "-f", "http://x/a b"], "timeout": timedelta(seconds=5),
    }  # fmt: skip
    assert run._gate(None, None) is None


@pytest.mark.parametrize(
    ("gate", "timeout", "message"),
    [(None, "5s", "--gate-timeout needs --gate"), (("lb1", "a 'b"), None, "--gate: .* is no command: No closing")],
)
def test_mistakes_about_a_gate(gate: tuple[str, str] | None, timeout: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        run._gate(gate, timeout)


def answered(exec_id: str, **_: Any) -> list[ExecOutput]:
    """The whole output of an execution that ended."""
    result = ExecResponse(id=exec_id, agent_id="web-1", state=ExecState.SUCCEEDED, exit_code=0)
    return [
        ExecOutput(id=exec_id, kind=OutputKind.STDOUT, seq=1, data=b"out"),
        ExecOutput(id=exec_id, kind=OutputKind.RESULT, result=result),
    ]


def test_the_output_of_each_execution_is_saved(run: Any, client: Any, tmp_path: Path) -> None:
    denied = BatchUpdate(result=BatchResult(agent_id="web-2", state=TargetState.DENIED))
    client.answers |= {"run": (denied, *UPDATES), "attach": answered}
    run("run", "--output-dir", str(tmp_path / "new"), "web-[1-2]", "--", "true")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["e-1"]
    saved = tmp_path / "new" / "e-1"
    assert sorted(path.name for path in saved.iterdir()) == ["result.json", "stderr", "stdout"]
    assert (saved / "stdout").read_bytes() == b"out"


def test_output_that_is_no_longer_available_is_named(run: Any, client: Any, tmp_path: Path) -> None:
    client.answers |= {"run": UPDATES, "attach": NotFound("there is no execution e-1")}
    done = run("run", "--output-dir", str(tmp_path), "web-1", "--", "true")
    told = "tachikoma: web-1: the output of e-1 is not saved completely: there is no execution e-1"
    assert (done.code, told in done.err.splitlines()) == (125, True)
    gap = ExecOutput(id="e-1", kind=OutputKind.GAP, missing_bytes=7)
    client.answers["attach"] = lambda *_, **__: [gap]
    done = run("run", "--output-dir", str(tmp_path), "-o", "json", "web-1", "--", "true")
    error = json.loads(done.err)["error"]
    assert (done.code, error["reason"], error["metadata"]) == (125, "OUTPUT_UNSAVED", {"id": "e-1"})
    assert error["message"].endswith(": 7 bytes of it are lost")


def test_a_file_that_takes_no_more_output_cancels_the_batch(run: Any, client: Any, tmp_path: Path) -> None:
    (tmp_path / "e-1").mkdir()
    (tmp_path / "e-1" / "stdout").symlink_to("/dev/full")
    client.answers |= {"run": UPDATES, "attach": answered, "cancel_batch": batch()}
    done = run("run", "--output-dir", str(tmp_path), "--id", "b-1", "web-1", "--", "true")
    full = f"tachikoma: cannot write to {tmp_path}/e-1/stdout: No space left on device; the batch is cancelled"
    assert (done.code, done.err.splitlines()[-1]) == (125, full)
    assert client.calls[-1][:2] == ("cancel_batch", ("b-1",))


def test_a_folder_for_output_is_checked_before_anything_runs(run: Any, client: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("run", "--output-dir", str(tmp_path / "file"), "web-1", "--", "true")
    assert (done.code, done.err) == (125, f"tachikoma: cannot write to {tmp_path}/file: File exists\n")
    done = run("run", "--output-dir", str(tmp_path), "--detach", "web-1", "--", "true")
    assert (done.code, "takes none of --detach and --preview" in done.err) == (125, True)
    assert client.calls == []


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("ls -l",), "no shell reads the command; write tachikoma run TARGETS -- ls -l, "
                     "or tachikoma run TARGETS -- sh -c 'ls -l'"),
        (("--timeout", "5s", "ls"), "options of run come before the targets: "
                                    "tachikoma run --timeout … TARGETS -- COMMAND"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", [{"state": TargetState.DENIED}, {"state": TargetState.FAILED, "exit_code": 127}])
def test_a_command_that_is_no_program_gets_the_right_hint(
    run: Any, client: Any, command: tuple[str, ...], hint: str, end: dict[str, Any]
) -> None:
    client.answers["run"] = (BatchUpdate(result=BatchResult(agent_id="web-1", exec_id="e", **end)), UPDATES[1])
    assert run("run", "web-1", *command).err.splitlines()[-1] == f"tachikoma: {hint}"
    assert run("run", "web-1", "ls").err.count("TARGETS") == 0
