"""The result of `tachikoma exec -o json`: the response with the output in it, and the files of `--output-dir`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tachikoma.cli.descriptors import OutputFailed
from tachikoma.cli.output import report_failure
from tachikoma.errors import ConfigurationError, InvalidRequest, TachikomaError
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import ExecOutput, ExecResponse

if TYPE_CHECKING:
    from tachikoma.client.aio import AsyncClient
    from tachikoma.vocabulary.batches import BatchResult

__all__ = ["MAX_OUTPUT_BYTES", "CollectedOutput", "ExecResult", "OutputFolder", "prepare_folder", "save_output"]

#: Largest number of bytes of each stream in a result. A longer stream needs `-o jsonl` or `--output-dir`.
MAX_OUTPUT_BYTES = 16 * 1024 * 1024


class ExecResult(ExecResponse):
    """The result of an execution with its output.

    `stdout` and `stderr` are base64 and have the first 16 MiB of each stream; `truncated` says whether that is all.
    """

    #: Standard output as text; null if it is not UTF-8.
    stdout_text: str | None
    #: Standard error as text; null if it is not UTF-8.
    stderr_text: str | None


class CollectedOutput:
    """The output of an execution, collected from its messages for the result."""

    def __init__(self) -> None:
        self._streams = {OutputKind.STDOUT: bytearray(), OutputKind.STDERR: bytearray()}
        self._truncated = {OutputKind.STDOUT: False, OutputKind.STDERR: False}

    def add(self, item: ExecOutput) -> None:
        """Take one message."""
        if item.kind not in self._streams:
            return
        stream = self._streams[item.kind]
        room = MAX_OUTPUT_BYTES - len(stream)
        stream += item.data[:room]
        self._truncated[item.kind] |= len(item.data) > room

    def result(self, response: ExecResponse) -> ExecResult:
        """Return the response with the collected output."""
        values = dict(response)
        for kind, stream in self._streams.items():
            content = bytes(stream)
            summary = values[f"{kind}_summary"]
            values[str(kind)] = content
            values[f"{kind}_summary"] = summary.model_copy(update={"truncated": self._truncated[kind]})
            try:
                values[f"{kind}_text"] = content.decode()
            except UnicodeDecodeError:
                values[f"{kind}_text"] = None
        return ExecResult(**values)


class OutputFolder:
    """The folder of `--output-dir`: `stdout`, `stderr`, `result.json` and `receipt.jws` in the folder of an execution.

    Only an execution whose end its agent reported has a receipt.
    """

    def __init__(self, folder: Path, exec_id: str) -> None:
        """Create the folder of an execution.

        Raises:
            OutputFailed: the folder or a file cannot be created.
        """
        self._folder = folder / exec_id
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that a failed write leaves nothing that closing would write again.
            self._files = {
                kind: (self._folder / kind).open("wb", buffering=0) for kind in (OutputKind.STDOUT, OutputKind.STDERR)
            }
        except OSError as error:
            raise OutputFailed(self._folder, error) from error

    def add(self, item: ExecOutput) -> None:
        """Append a chunk to its file, or write result and receipt.

        Raises:
            OutputFailed: the file takes no more.
        """
        place = self._folder / ("result.json" if item.result is not None else item.kind)
        try:
            if item.result is not None:
                text = item.result.model_dump_json(by_alias=True, indent=2, exclude={"stdout", "stderr", "receipt"})
                place.write_text(text + "\n", encoding="utf-8")
                if item.result.receipt:
                    place = self._folder / "receipt.jws"
                    place.write_text(item.result.receipt + "\n", encoding="ascii")
            elif (file := self._files.get(item.kind)) is not None:
                view = memoryview(item.data)
                while view:
                    view = view[file.write(view) :]
        except OSError as error:
            raise OutputFailed(place, error) from error

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def prepare_folder(folder: Path | None, *, runs: bool) -> None:
    """Make the folder of `--output-dir` before anything runs.

    Raises:
        InvalidRequest: this program does not wait for the batch.
        ConfigurationError: the folder cannot be made.
    """
    if folder is None:
        return
    if not runs:
        raise InvalidRequest("--output-dir saves the output when it comes, so it takes none of --detach and --preview")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot write to {folder}: {error.strerror}") from None


async def save_output(client: AsyncClient, result: BatchResult, folder: Path) -> bool:
    """Save the complete output of a target in the folder of its execution.

    Returns:
        False if its output is not available, which is reported.

    Raises:
        OutputFailed: a file takes no more.
    """
    if not result.exec_id:
        return True
    saved, missing = OutputFolder(folder, result.exec_id), 0
    try:
        async for item in client.attach(result.exec_id):
            saved.add(item)
            missing += item.missing_bytes
        why = f"{missing} bytes of it are lost" if missing else ""
    except TachikomaError as error:
        why = str(error)
    finally:
        saved.close()
    if why:
        report_failure(
            f"{result.agent_id}: the output of {result.exec_id} is not saved completely: {why}",
            reason="OUTPUT_UNSAVED", code="DATA_LOSS", metadata={"id": result.exec_id},
        )  # fmt: skip
    return not why
