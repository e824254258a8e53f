"""What all tests share: where Redis comes from, and the rule that nothing is skipped in CI."""

from __future__ import annotations

import faulthandler
import gc
import getpass
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import HealthCheck, settings

# Test folders are no packages; what they share is imported by its plain name.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "end_to_end")]

# Commands of tests look at files of the tests, so they run as whoever runs those; that the default is another user is
# tested by itself.
os.environ["TACHIKOMA_USER"] = getpass.getuser()
# A run that was started in the background, or by nohup, ignores these, and all that it starts would too.
for ignored in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(ignored, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
#: Examples of each property; `make quick` asks for fewer.
EXAMPLES = int(os.environ.get("TACHIKOMA_TEST_EXAMPLES", "60"))
#: Lines of each log of a stack that are shown with a failure, and how their sections begin.
LOG_LINES, LOG_OF = 30, "log of"
#: Longest teardown of a test, in seconds. Those of stacks wait for processes, each with a bound.
TEARDOWN_SECONDS = 300
#: Longest exit of a process of tests, in seconds.
EXIT_SECONDS = 120
#: A redis-server or valkey-server to test with instead of the embedded Valkey.
REDIS_SERVER = os.environ.get("TACHIKOMA_TEST_REDIS_SERVER")

# A busy machine is no bug, so nothing depends on time. No database: the tests leave nothing behind. In CI the examples
# are the same each time, so that a change is never refused for what it has not changed; others look for new ones.
settings.register_profile(
    "tachikoma", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=EXAMPLES, database=None,
    derandomize="CI" in os.environ,
)  # fmt: skip
settings.load_profile("tachikoma")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect the tests without collections of garbage, and keep later ones from the thousands of tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """End the process if a teardown does not end: pytest-timeout interrupts a test only once, and pytest does not watch
    a test any more that has failed."""
    stderr = item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(TEARDOWN_SECONDS, exit=True, file=stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End the process if it does not end by itself after the last test, because a thread waits for ever."""
    faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True, file=sys.__stderr__)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the last lines of the logs of a stack to the failure of a test that uses it: its folder will be removed."""
    report = yield
    if report.failed:
        report.sections += _logs(getattr(item, "funcargs", {}).values())
    return report


def _logs(values: Iterable[object]) -> list[tuple[str, str]]:
    """Return the last lines of each log of the stacks among values, and among what they have as `stack`."""
    folders = {
        found.data / "logs"
        for value in values
        for found in (value, getattr(value, "stack", None))
        if isinstance(getattr(found, "data", None), Path) and hasattr(found, "redis_admin")
    }
    logs = sorted(log for folder in folders if folder.is_dir() for log in folder.glob("*.log"))
    return [
        (f"{LOG_OF} {log.stem}", "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])) for log in logs
    ]


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print a failure in CI at once: a run that does not come to its end prints no summary."""
    if report.failed and os.environ.get("CI") and "PYTEST_XDIST_WORKER" not in os.environ:
        logs = "".join(f"--- {name}\n{text}\n" for name, text in report.sections if name.startswith(LOG_OF))
        print(f"\n{report.nodeid}: {report.when} failed\n{report.longreprtext}\n{logs}", flush=True)


@pytest.fixture(scope="session")
def debian() -> Path:
    """Debian's redis-server, which has TLS and Sentinel. A laptop may lack it; CI must not."""
    found = shutil.which("redis-server")
    if found:
        return Path(found)
    if os.environ.get("CI"):
        pytest.fail("CI lacks redis-server", pytrace=False)
    pytest.skip("needs redis-server")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Restore logging after each test: commands set it up for their process, which is the process of all tests here."""
    configure = structlog.configure

    def configure_for_one_test(*args: Any, **values: Any) -> None:
        # A cached logger would keep this configuration for ever.
        configure(*args, **{**values, "cache_logger_on_first_use": False})

    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    # Not the fixture `monkeypatch`: the patches of a test must be undone before its other fixtures end.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", configure_for_one_test)
        yield
    root.setLevel(level)
    # pytest removes its own handlers itself.
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
    if structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture(scope="module", autouse=True)
def broker_as_before() -> Iterator[None]:
    """Restore kombu's transports after each module: applications replace them for their process."""
    from kombu import transport

    before = dict(transport.TRANSPORT_ALIASES)
    yield
    transport.TRANSPORT_ALIASES.update(before)
    # The transports that it has resolved.
    transport._transport_cache.clear()


@pytest.fixture(scope="session", autouse=True)
def quick_starts() -> Iterator[None]:
    """Fork the parts of stacks from a process that has imported the program."""
    from tachikoma.dev.part import Part
    from warm_start import WarmPopen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Part, "popen", WarmPopen)
        yield


@pytest.fixture(scope="session")
def redis_server() -> Path | None:
    """The server to run; None for the embedded Valkey."""
    return Path(REDIS_SERVER) if REDIS_SERVER else None


@pytest.fixture
def need() -> Callable[[bool, str], None]:
    """Say what a test needs of the machine. A laptop may lack it; CI must not."""

    def check(available: bool, what: str) -> None:
        if available:
            return
        if os.environ.get("CI"):
            pytest.fail(f"CI lacks {what}", pytrace=False)
        pytest.skip(f"needs {what}")

    return check
