"""Values that a process remembers for a while."""

from __future__ import annotations

from tachikoma_orchestrator.store.remembered import Remembered


def keys_of(remembered: Remembered[str, int]) -> list[str]:
    return [entry.key for entry in remembered]


def test_the_last_value_of_each_key_is_remembered_in_order() -> None:
    remembered: Remembered[str, int] = Remembered(60, 10)
    for number, key in enumerate("aba"):
        remembered.put(key, number)
    assert [(entry.key, entry.value) for entry in remembered] == [("b", 1), ("a", 2)]
    assert (remembered.get("a"), remembered.get("c")) == (2, None)
    assert all(0 <= entry.age_seconds < 60 for entry in remembered)


def test_the_first_value_stays_where_that_is_wanted() -> None:
    remembered: Remembered[str, int] = Remembered(60, 10)
    for number, key in enumerate("aba"):
        remembered.put_first(key, number)
    assert [(entry.key, entry.value) for entry in remembered] == [("a", 0), ("b", 1)]


def test_only_the_latest_values_are_remembered() -> None:
    remembered: Remembered[str, int] = Remembered(60, 3)
    for number in range(10):
        remembered.put(str(number), number)
    assert keys_of(remembered) == ["7", "8", "9"]


def test_a_value_is_forgotten_after_its_time_and_on_demand() -> None:
    remembered, short = Remembered[str, int](60, 10), Remembered[str, int](-1, 10)
    for each in (remembered, short):
        each.put("old", 1)
    assert (keys_of(remembered), keys_of(short), short.get("old")) == (["old"], [], None)
    remembered.forget("old")
    remembered.forget("old")
    assert keys_of(remembered) == []


def test_values_may_be_remembered_while_they_are_read() -> None:
    remembered: Remembered[str, int] = Remembered(60, 10)
    remembered.put("a", 1)
    for entry in remembered:
        remembered.put("b", entry.value)
    assert keys_of(remembered) == ["a", "b"]
