"""Scheduled times: against Celery's crontab, against a walk over every minute, and where clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab
from hypothesis import assume, given
from hypothesis import strategies as st

from tachikoma.schedules.timing import MAX_EVERY_MS, MIN_EVERY_MS, Cron, Every, Timing, parse_timing
from tachikoma.vocabulary.clock import LAST_MS

#: With an offset that is no whole hour, a change by half an hour, changes at midnight, and a day that was left out.
ZONES = [
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "America/Sao_Paulo",
    "America/Havana", "Pacific/Apia", "Africa/Casablanca",
]  # fmt: skip
APP = Celery("test", set_as_current=False)
APP.conf.timezone = "UTC"


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def local(cron: Cron, after: str, number: int) -> list[str]:
    """The next scheduled times as their own clocks show them."""
    zone = ZoneInfo(cron.timezone)
    return [datetime.fromtimestamp(due / 1000, zone).isoformat() for due in islice(cron.after(ms(after)), number)]


def numbers(low: int, high: int) -> st.SearchStrategy[str]:
    one = st.integers(low, high)
    part = st.one_of(
        one.map(str),
        st.tuples(one, one).map(lambda pair: f"{pair[0]}-{pair[1]}"),
        st.tuples(one, one, st.integers(1, min(5, high - low))).map(lambda three: f"{three[0]}-{three[1]}/{three[2]}"),
        st.integers(1, min(20, high - low)).map(lambda step: f"*/{step}"),
    )
    return st.one_of(st.just("*"), st.lists(part, min_size=1, max_size=3).map(",".join))


EXPRESSIONS = st.tuples(numbers(0, 59), numbers(0, 23), numbers(1, 28), numbers(1, 12), numbers(0, 6)).map(" ".join)
#: Due on most days.
DAILY = st.tuples(numbers(0, 59), numbers(0, 23), st.one_of(st.just("*"), numbers(0, 6))).map(
    lambda parts: f"{parts[0]} {parts[1]} * * {parts[2]}"
)
#: Where clocks changed, each with days before and after.
CHANGES = st.sampled_from(
    ["2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2018-11-04", "2019-02-17", "2011-12-30", "2026-04-05",
     "2026-10-04", "2026-03-22", "2026-02-15"]
)  # fmt: skip
TIMINGS: st.SearchStrategy[Timing] = st.one_of(
    st.integers(MIN_EVERY_MS, 10**7).map(Every), st.builds(Cron, EXPRESSIONS, st.sampled_from(ZONES))
)


@given(EXPRESSIONS, st.integers(ms("2024-01-01T00:00:00+00:00"), ms("2032-01-01T00:00:00+00:00")))
def test_a_cron_expression_means_what_it_means_to_celery(expression: str, start: int) -> None:
    minute, hour, day, month, weekday = expression.split()
    last = datetime.fromtimestamp(start / 1000, UTC)
    theirs = crontab(minute, hour, weekday, day, month, app=APP, nowfun=lambda: last)
    for due in islice(Cron(expression).after(start), 3):
        assert datetime.fromtimestamp(due / 1000, UTC) == last + theirs.remaining_estimate(last)
        last = datetime.fromtimestamp(due / 1000, UTC)


@cache
def parsed(expression: str) -> crontab:
    """Return Celery's own sets of an expression."""
    fields = expression.split()
    return crontab(fields[0], fields[1], fields[4], fields[2], fields[3])


def is_due(cron: Cron, at: datetime) -> bool:
    """Whether a minute is due, by what this page says of gaps and folds and by nothing of the code."""
    zone = ZoneInfo(cron.timezone)

    def matches(naive: datetime) -> bool:
        own = parsed(cron.expression)
        return (
            naive.minute in own.minute and naive.hour in own.hour and naive.day in own.day_of_month
            and naive.month in own.month_of_year and naive.isoweekday() % 7 in own.day_of_week
        )  # fmt: skip

    there = at.astimezone(zone)
    every_hour = len(parsed(cron.expression).hour) == 24
    if matches(there.replace(tzinfo=None)) and (there.fold == 0 or every_hour):
        return True
    before = (at - timedelta(hours=30)).astimezone(zone).utcoffset()
    assert before is not None
    would_be = (at + before).replace(tzinfo=None)
    left_out = would_be.replace(tzinfo=zone).astimezone(UTC).astimezone(zone).replace(tzinfo=None) != would_be
    return left_out and matches(would_be)


@given(DAILY, st.sampled_from(ZONES), CHANGES, st.integers(0, 1439))
@pytest.mark.slow
def test_every_minute_about_a_change_of_clocks_is_due_or_not(expression: str, zone: str, day: str, minute: int) -> None:
    cron = Cron(expression, zone)
    start = datetime.fromisoformat(f"{day}T00:00:00+00:00") + timedelta(minutes=minute - 720)
    # Coarse steps, but for the minutes that may be due at all.
    minutes = [start + timedelta(minutes=n) for n in range(600)]
    wanted = [round(at.timestamp() * 1000) for at in minutes if is_due(cron, at)]
    begin, end = round(minutes[0].timestamp() * 1000) - 1, round(minutes[-1].timestamp() * 1000)
    assert cron.between(begin, end, 10_000) == (wanted, len(wanted))


@given(TIMINGS, CHANGES, st.integers(0, 3 * 24 * 3600 * 1000), st.integers(1, 50))
def test_looking_back_finds_what_looking_ahead_found(timing: Timing, day: str, length: int, newest: int) -> None:
    start = ms(f"{day}T00:00:00+00:00") - 24 * 3600 * 1000
    ahead = list(islice(takewhile(lambda due: due <= start + length, timing.after(start)), 5000))
    assume(len(ahead) < 5000)
    assert timing.between(start, start + length, newest) == (ahead[-newest:], len(ahead))
    assert ahead == sorted(set(ahead))


@given(TIMINGS)
def test_a_rule_is_read_as_it_was_written(timing: Timing) -> None:
    assert parse_timing(timing.text) == timing


@pytest.mark.parametrize("text", ["", "every", "every 1.5", "every -5", "every 99", "cron UTC", "cron Mars 0 0 * * *"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_timing(text)


def test_an_interval_is_counted_from_the_epoch() -> None:
    assert list(islice(Every(900_000).after(ms("2026-05-01T10:07:00+00:00")), 2)) == [
        ms("2026-05-01T10:15:00+00:00"),
        ms("2026-05-01T10:30:00+00:00"),
    ]
    assert list(islice(Every(1000).after(5000), 1)) == [6000]
    assert Every(MAX_EVERY_MS).between(0, MAX_EVERY_MS, 5) == ([MAX_EVERY_MS], 1)


def test_a_local_time_that_is_left_out_is_due_as_if_the_clock_had_not_been_set() -> None:
    assert local(Cron("30 2 * * *", "Europe/Berlin"), "2026-03-27T12:00:00+00:00", 3) == [
        "2026-03-28T02:30:00+01:00",
        "2026-03-29T03:30:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]


def test_what_is_left_out_is_not_due_twice_with_what_it_becomes() -> None:
    found = local(Cron("30 * * * *", "Europe/Berlin"), "2026-03-29T00:00:00+00:00", 3)
    assert found == ["2026-03-29T01:30:00+01:00", "2026-03-29T03:30:00+02:00", "2026-03-29T04:30:00+02:00"]


def test_a_local_time_that_comes_twice_is_due_the_first_time() -> None:
    assert local(Cron("30 2 * * *", "Europe/Berlin"), "2026-10-24T12:00:00+00:00", 2) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]


def test_what_is_due_every_hour_is_due_both_times() -> None:
    assert local(Cron("30 * * * *", "Europe/Berlin"), "2026-10-25T00:00:00+00:00", 3) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:30:00+01:00",
        "2026-10-25T03:30:00+01:00",
    ]


def test_a_day_that_a_country_left_out_is_not_run_twice_on_the_next() -> None:
    assert local(Cron("0 10 * * *", "Pacific/Apia"), "2011-12-29T00:00:00+00:00", 3) == [
        "2011-12-29T10:00:00-10:00",
        "2011-12-31T10:00:00+14:00",
        "2012-01-01T10:00:00+14:00",
    ]


def test_the_rarest_day_is_found() -> None:
    assert local(Cron("0 0 29 feb mon"), "2016-03-01T00:00:00+00:00", 1) == ["2044-02-29T00:00:00+00:00"]


def test_days_of_month_and_week_must_both_be_right() -> None:
    # The first Monday of the month.
    assert local(Cron("0 9 1-7 * mon"), "2026-01-01T00:00:00+00:00", 2) == [
        "2026-01-05T09:00:00+00:00",
        "2026-02-02T09:00:00+00:00",
    ]


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("* * * *", "five fields"),
        ("60 * * * *", "the minute: 60 is not from 0 to 59"),
        ("* 24 * * *", "the hour: 24"),
        ("* * 0 * *", "the day of the month: 0"),
        ("* * * dog *", "the month: 'dog' is not a number"),
        ("* * * * 8", "the day of the week: 8"),
        ("*/0 * * * *", "a step is from 1 to 59"),
        ("5/10 * * * *", "a step follows"),
        ("1,,2 * * * *", "is not one of"),
        ("-1 * * * *", "is not one of"),
        ("0 0 30 feb *", "none of these days exists"),
        ("1" * 300 + " * * * *", "five fields"),
    ],
)
def test_a_wrong_expression_says_what_is_wrong(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Cron(expression)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0 0 * * 7", "0 0 * * 0"),
        ("0 0 * * 5-7", "0 0 * * 0,5,6"),
        ("0 0 * * 7-2", "0 0 * * 0,1,2"),
        ("0 0 * * sat-sun", "0 0 * * 0,6"),
        ("0 0 * * 1,7", "0 0 * * 0,1"),
        ("0 0 * * 0-7", "0 0 * * *"),
        ("0 0 * * 1-7/2", "0 0 * * 0,1,3,5"),
        ("0 0 * * MON", "0 0 * * 1"),
        ("0 0 * * tues", "0 0 * * 2"),
        ("0 0 1 sept *", "0 0 1 9 *"),
        ("0 0 1 July *", "0 0 1 7 *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@Weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@hourly", "0 * * * *"),
    ],
)
def test_the_customs_of_cron_are_known(written: str, meant: str) -> None:
    start = ms("2026-02-01T10:00:00+00:00")
    assert list(islice(Cron(written).after(start), 20)) == list(islice(Cron(meant).after(start), 20))
    rule = parse_timing(Cron(written).text)
    assert rule == Cron(written)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("0 0 * * monkey", "'monkey' is not a number, nor one of sun, mon, tue, wed, thu, fri, sat"),
        ("0 0 1 febuary *", "'febuary' is not a number, nor one of jan, feb, mar"),
        ("0 0 1 mo *", "'mo' is not a number, nor one of"),
        ("0 0 * * mondays", "'mondays' is not a number, nor one of"),
        ("jan 0 * * *", "'jan' is not a number$"),
        ("*/100 * * * *", "a step is from 1 to 59 here"),
        ("*/60 * * * *", "a step is from 1 to 59 here"),
        ("0 */24 * * *", "a step is from 1 to 23 here"),
        ("0 0 * * 1-5/9", "a step is from 1 to 6 here"),
        ("0 0 L * *", "write 28, which each month has"),
        ("0 0 L-3 * *", "write 28, which each month has"),
        ("0 0 * * 5L", "write the days of that week, such as 1-7"),
        ("0 0 * * fri#2", "write the days of that week"),
        ("0 0 15W * *", "nearest working day"),
        ("0 0 ? * *", "write . instead of ?"),
        ("H 0 * * *", "write a number instead of H"),
        ("@reboot", "'@reboot' is not one of @yearly, @annually, @monthly, @weekly, @daily"),
        ("0 0 * * 8", "8 is not from 0 to 7"),
        ("0 0 * * 7-9", "9 is not from 0 to 7"),
        ("0 0 * 13 *", "13 is not from 1 to 12"),
        ("9999999999 0 * * *", "is not one of"),
    ],
)
def test_a_mistake_is_refused_with_what_to_write(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Cron(expression)


@given(st.text("0123456789*/-,@lLwW#?hH monfebsu", max_size=20))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        cron = Cron(text)
    except ValueError:
        return
    assert next(cron.after(0)) > 0


def test_a_year_of_minutes_is_counted() -> None:
    found, total = Cron("* * * * *", "Europe/Berlin").between(
        ms("2025-01-01T00:00:00+01:00"), ms("2026-01-01T00:00:00+01:00"), 100
    )
    assert len(found) == 100
    assert total == 365 * 1440


@pytest.mark.parametrize(
    "timing", [Every(500), Every(MAX_EVERY_MS), Cron("30 2 * * *", "Pacific/Kiritimati"), Cron("* * * * *")]
)
@pytest.mark.parametrize("ms", [LAST_MS, LAST_MS - 1, LAST_MS - 90_000_000, LAST_MS - 10**9])
def test_a_rule_ends_with_the_calendar(timing: Timing, ms: int) -> None:
    assert all(ms < due <= LAST_MS for due in islice(timing.after(ms), 5))
    found, total = timing.between(ms - 10_000, ms, 10)
    assert len(found) <= total
    assert all(ms - 10_000 < due <= ms for due in found)
