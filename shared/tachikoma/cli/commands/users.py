"""`tachikoma users`: list, add and revoke people; and `tachikoma login` on the other side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tachikoma.cli import completion
from tachikoma.cli.documents import LoggedIn
from tachikoma.cli.options import ReasonOption, YesOption, confirm, duration
from tachikoma.cli.output import Output, OutputOption, WatchOption, WideOption, show_list, show_value, watch
from tachikoma.cli.show import age, clock, short_id, warn
from tachikoma.cli.tables import Cell, Column, printable, table
from tachikoma.client.sync import Client
from tachikoma.vocabulary.users import UserEnrolment, UserInfo

__all__ = ["add_to", "users"]

users = typer.Typer(no_args_is_help=True, help="List people, create login tokens for them, and revoke them.")


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(users, name="users")
    app.command()(login)


#: Columns of the list; the last ones to be left out have the smallest numbers.
COLUMNS = (
    Column("USER"),
    Column("STATE"),
    Column("LOGGED IN", 1),
    Column("FROM", 3),
    Column("ENROLLED BY", 2, elastic=True),
)


@users.command()
def ls(wide: WideOption = False, again: WatchOption = False, output: OutputOption = Output.TEXT) -> None:
    """List the people that logged in with a token, and those that are revoked."""

    def text(found: Sequence[UserInfo]) -> None:
        table(COLUMNS, map(_row, found), wide=wide)
        for item in found:
            if item.revoked:
                warn(f"{item.name}: revoked by {item.revoked_by}: {printable(item.revoke_reason)}")

    with Client() as client:
        watch(lambda form: show_list(client.users(), form, name=lambda item: item.name, text=text), output, again=again)


def _row(item: UserInfo) -> tuple[str | Cell, ...]:
    state = Cell("revoked", "red") if item.revoked else Cell("active", "green")
    return item.name, state, age(item.joined), item.address or "-", short_id(item.enrolled_by) or "-"


@users.command()
def add(
    name: Annotated[str, typer.Argument(help="The person: the last part of spiffe://…/user/NAME.")],
    ttl: Annotated[str, typer.Option(help="Lifetime of the token, at most 24h.")] = "15m",
    output: OutputOption = Output.TEXT,
) -> None:
    """Create and print a token with which one person may log in once, by `tachikoma login`."""
    lifetime = duration(ttl, "--ttl")
    with Client() as client:
        made = client.enroll_user(name, lifetime)
    show_value(made, output, name=lambda made: made.token, text=_show_token)


def _show_token(made: UserEnrolment) -> None:
    typer.echo(made.token)
    warn(f"{made.name} may log in with this token, once, until {clock(made.expires)}: tachikoma login")


@users.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The person.", autocompletion=completion.users)],
    reason: ReasonOption,
    yes: YesOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Refuse every certificate of a person at once, until that person logs in with a new token.

    Calls and interactive executions of the person end. Other executions continue: list and cancel them.
    """
    confirm(f"revoke {name}, whose certificates are then refused", yes=yes)
    with Client() as client:
        done = client.revoke_user(name, reason)
    show_value(done, output, name=lambda done: done.name, text=lambda done: typer.echo(f"{done.name}: revoked"))


def login(
    token_file: Annotated[
        str, typer.Option(help="File with the token of `tachikoma users add`; by default it is read from the input.")
    ] = "-",  # noqa: S107 (standard input)
    identity: Annotated[
        Path | None, typer.Option(help="Folder for the X.509-SVID; by default one of your own data folder.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Create an identity and a client profile with a token. Every later command renews the identity when it is due."""
    # Imported here: the list of commands does not need gRPC.
    from tachikoma.client.membership.joining import join
    from tachikoma.client.membership.token_file import read_token
    from tachikoma.client.profile import Profile, check_writable, default_identity_path, default_profile_path

    token = read_token(token_file, prompt="token: ")
    folder = (identity or default_identity_path(token.spiffe_id.trust_domain)).absolute()
    profile = default_profile_path()
    # Before the token is used up.
    check_writable(profile)
    answer = asyncio.run(join(token, folder))
    Profile(address=answer.address, server_name=answer.server_name, identity=folder).save(profile)
    facts = LoggedIn(spiffe_id=str(token.spiffe_id), identity=str(folder), profile=str(profile), address=answer.address)
    show_value(facts, output, name=lambda facts: facts.spiffe_id, text=_show_login)


def _show_login(facts: LoggedIn) -> None:
    typer.echo(f"you are {facts.spiffe_id} at {facts.address}")
    typer.echo(f"identity {facts.identity}")
    typer.echo(f"profile  {facts.profile}")
