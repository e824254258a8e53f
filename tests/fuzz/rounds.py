"""Property tests with a bound in time instead of a number of examples, and inputs that are nearly valid."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

__all__ = ["JSON", "fuzz", "mutated", "mutated_json"]

#: Seconds for each kind of input; `make fuzz` asks for more.
SECONDS = float(os.environ.get("TACHIKOMA_TEST_FUZZ_SECONDS", "0.5"))
#: Most processor time of one input. The readers run in event loops, which serve nobody meanwhile.
MAX_CPU_SECONDS = 5.0
#: Longest time of one input on any machine, in seconds.
MAX_WAIT_SECONDS = 120
#: Examples between two looks at the clock.
AT_ONCE = 25

T = TypeVar("T", bytes, str)

#: Texts that parsers of numbers, times, Unicode or nesting have stumbled over.
_HARD = (
    "", "0", "-1", "1e309", "9" * 400, "nan", "-0", "0x10", "1_000", "²", "true", "null", "~", "\x00", "\u202e",
    "\ufeff",
    "[" * 500, "{" * 500, "&a [*a]", "<<: *a", "!!python/object:x {}", "%s", "../..", "*", "**", "{a,b}" * 20, "[!-]",
    "\r\n", "\x85", "P1D", "24h", "1h1h", "@daily", "0 0 30 2 *", "*/0 * * * *", "spiffe://", "a" * 5000,
)  # fmt: skip
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.sampled_from(_HARD)
)
#: Any value of JSON, in places where another was expected.
JSON: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn, valid: Sequence[T], words: Sequence[T] = ()) -> T:
    """A valid text with up to four changes: parts removed, repeated or replaced."""
    text = draw(st.sampled_from(valid))
    if isinstance(text, bytes):
        other: st.SearchStrategy[Any] = st.binary(max_size=6) | st.sampled_from([*_encoded(_HARD), *words])
    else:
        other = st.text(max_size=6) | st.sampled_from([*_HARD, *words])
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, len(text)))
        end = min(len(text), begin + draw(st.sampled_from([0, 1, 2, 8, 64])))
        part = text[begin:end]
        text = text[:begin] + draw(st.one_of(other, st.just(part + part))) + text[end:]
    return text


def _encoded(texts: Sequence[str]) -> list[bytes]:
    return [text.encode("utf-8", "surrogatepass") for text in texts]


@st.composite
def mutated_json(draw: st.DrawFn, valid: Any) -> Any:
    """A valid JSON value in which up to three values are removed or replaced by any other."""
    value = valid
    for _ in range(draw(st.integers(0, 3))):
        value = _changed(draw, value)
    return value


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        name = draw(st.sampled_from(sorted(value)))
        rest = {key: item for key, item in value.items() if key != name}
        how = draw(st.sampled_from(["inside", "inside", "removed", "more"]))
        if how == "removed":
            return rest
        if how == "more":
            return value | {draw(st.text(max_size=6)): draw(JSON)}
        return {**rest, name: _changed(draw, value[name])}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _changed(draw, value[place]), *value[place + 1 :]]
    if isinstance(value, str) and draw(st.booleans()):
        return draw(mutated([value]))
    return draw(JSON)


def fuzz(check: Callable[..., object], *inputs: st.SearchStrategy[Any]) -> None:
    """Run a check on inputs until the time is over; it raises for an input that is not handled."""

    def bounded(*values: Any) -> None:
        before, began = time.thread_time(), time.monotonic()
        check(*values)
        took, passed = time.thread_time() - before, time.monotonic() - began
        assert took < MAX_CPU_SECONDS, f"one input took {took:.1f} s of a processor"
        # A busy machine makes it slower, but no reader waits for anything.
        assert passed < MAX_WAIT_SECONDS, f"one input took {passed:.1f} s"

    examples = settings(
        max_examples=AT_ONCE, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        # Making a failing input smaller takes minutes.
        phases=(Phase.generate,),
    )  # fmt: skip
    until = time.monotonic() + SECONDS
    rounds = 0
    while not rounds or time.monotonic() < until:
        rounds += 1
        seed(random.getrandbits(64))(examples(given(st.tuples(*inputs))(lambda drawn: bounded(*drawn))))()
    print(f"about {rounds * AT_ONCE} inputs")
