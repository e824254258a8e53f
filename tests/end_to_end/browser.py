"""A headless Chromium, driven by its DevTools protocol over a pipe: no driver, no further package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from patience import PATIENCE_SECONDS


def chromium() -> str | None:
    """The browser's program, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page of a Chromium of its own. A context manager."""

    def __init__(self, *, width: int, height: int) -> None:
        self._width, self._height = width, height
        program = chromium()
        assert program is not None
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        self._process = subprocess.Popen(
            [
                # It looks for its pipes at 3 and 4. Not by a `preexec_fn`; `tachikoma.dev.part` says why.
                "bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash",
                program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._profile}",
                # CI runs as root, and in containers with a small /dev/shm. Nothing but our own pages is looked at.
                "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-extensions",
                "--force-color-profile=srgb", "--lang=en", f"--window-size={width},{height}", "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TZ": "UTC"},
            pass_fds=(to_read, to_write),
            start_new_session=True,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        [page] = [target for target in self._call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Emulation.setScrollbarsHidden", hidden=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not by a signal: its other processes would write on for a moment, into the folder that is to go.
        self._session = None
        try:
            self._call("Browser.close")
            self._process.wait(PATIENCE_SECONDS)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(PATIENCE_SECONDS)
            os.close(self._write)
            os.close(self._read)
            shutil.rmtree(self._profile, ignore_errors=True)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], PATIENCE_SECONDS)[0], "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def open(self, url: str) -> None:
        """Go to a page; user and password may stand in its URL, as whoever logs in there types them."""
        answer = self._call("Page.navigate", url=url)
        assert "errorText" not in answer, answer

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str, what: str, condition: Callable[[Any], bool] = bool) -> Any:
        """Wait until an expression's value is as it should be, and return it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
            # While it loads there may be nothing to look at yet.
            value = None if "exceptionDetails" in answer else answer["result"].get("value")
            if "exceptionDetails" not in answer and condition(value):
                return value
            if time.monotonic() > deadline:
                pytest.fail(f"did not come true in {PATIENCE_SECONDS:g} s: {what}; it is {str(value)[:1000]}")
            time.sleep(0.05)

    def screenshot(self, path: Path, *, scale: float) -> None:
        """Write what is seen of the page as a PNG."""
        clip = {"x": 0, "y": 0, "width": self._width, "height": self._height, "scale": scale}
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png", clip=clip)["data"]))
