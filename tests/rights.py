"""What a user of Redis may do, asked of the server for every command it has."""

from __future__ import annotations

from collections.abc import Iterator

import redis as redis_py

#: Words before the names in commands whose names Redis finds by a word. Without it they name nothing, and are an error.
BEFORE_NAMES = {"xread": ["STREAMS"]}


def every_command(admin: redis_py.Redis) -> Iterator[tuple[list[str], int]]:
    """Each command and subcommand of the server, with how many further words it takes at least."""
    # redis-py would leave out the subcommands.
    admin.set_response_callback("COMMAND", lambda answer, **_: answer)
    for entry in admin.execute_command("COMMAND"):
        name, arity, subcommands = entry[0], entry[1], entry[9]
        if not subcommands:
            yield [name], abs(arity) - 1
        for subcommand in subcommands:
            yield subcommand[0].split("|"), abs(subcommand[1]) - 2


def dry_run(
    admin: redis_py.Redis, user: str, commands: list[tuple[list[str], int]], names: list[str]
) -> set[tuple[str, str]]:
    """Commands and names with which a user may use them."""
    cases = [(words, number, name) for words, number in commands for name in names]
    with admin.pipeline(transaction=False) as pipe:
        for words, number, name in cases:
            pipe.execute_command(
                "ACL", "DRYRUN", user, *words, *BEFORE_NAMES.get(words[0].lower(), ()), *[name] * max(number, 0)
            )
        answers = pipe.execute(raise_on_error=False)
    allowed = set()
    for (words, _, name), answer in zip(cases, answers, strict=True):
        assert isinstance(answer, str), (words, name, answer)
        if answer == "OK":
            allowed.add(("|".join(words), name))
        else:
            assert "permission" in answer, (words, name, answer)
    return allowed
