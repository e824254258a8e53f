"""The text of a screen, for searches."""

from __future__ import annotations

import io

from tachikoma_orchestrator.recordings.search import ScreenText, matching_lines


def lines(*parts: tuple[int, bytes], rows: int = 5, columns: int = 40) -> list[str]:
    file = io.BytesIO()
    text = ScreenText(file, rows, columns)
    for at_us, data in parts:
        text.feed(at_us, data)
    text.look()
    return file.getvalue().decode().splitlines()


def test_every_line_of_a_long_output_is_found_although_it_left_the_screen() -> None:
    found = lines((7, b"".join(b"line %d\r\n" % number for number in range(2000))))
    # A look in the middle of a line finds its beginning, too.
    assert {line.partition("\t")[2] for line in found} >= {f"line {number}" for number in range(2000)}
    many = [(number, b"row %d\r\n" % number) for number in range(300)]
    assert {line.partition("\t")[2] for line in lines(*many)} == {f"row {number}" for number in range(300)}


def test_text_that_a_program_draws_in_pieces_or_clears_at_once_is_found() -> None:
    drawn = lines((1, b"\x1b[2;1Hsecret"), (2, b"\x1b[2;7Hword"), (3, b"\x1b[2J"), (4, b"\x1b[Hother"))
    assert "2\tsecretword" in drawn
    assert drawn[-1] == "4\tother"


def test_what_is_typed_slowly_is_found_where_it_was_typed() -> None:
    found = lines((0, b"$ "), (100_000, b"ec"), (200_000, b"ho"), (900_000, b"\x08\x08xx"))
    assert found == ["200000\t$ echo", "900000\t$ ecxx"]


def test_a_search_ignores_the_case_of_letters_and_repetitions() -> None:
    text = [b"1\tOne\n", b"2\tone more\n", b"3\tone more\n", b"4\ttwo\n", b"x\tone\n", b"5\tTHE ONE\n"]
    assert matching_lines(text, "one", 20) == [(1, "One"), (2, "one more"), (5, "THE ONE")]
    assert matching_lines(text, "ONE", 1) == [(1, "One")]
    assert matching_lines(text, "three", 20) == []


def test_a_change_of_size_and_a_gap_keep_what_was_shown() -> None:
    file = io.BytesIO()
    text = ScreenText(file, 5, 40)
    text.feed(1, b"before")
    text.resize(3, 20)
    text.skip()
    text.feed(2, b"\r\nafter")
    text.look()
    assert file.getvalue().decode().splitlines() == ["1\tbefore", "2\tafter"]
