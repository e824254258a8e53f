"""How Redis is reached, as settings say, and what of that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma.redis.access import RedisAccess, RedisSettings, celery_url, check_url
from tachikoma_orchestrator.commands.redis_check.acl import parse_acl


def access(**settings: Any) -> RedisAccess:
    return RedisAccess.of(RedisSettings(**settings), identity=None, user="agent.web-1")


def credentials(**settings: Any) -> tuple[str, ...] | None:
    provider = access(**settings).credentials
    return None if provider is None else tuple(provider.get_credentials())


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("current\nolder\n")
    return path


@pytest.mark.parametrize(
    ("url", "celery"),
    [
        ("redis://h", "redis://h/0"),
        ("rediss://h:7000/2", "rediss://h:7000/2"),
        ("redis://user:secret@h:1?db=3", "redis://h:1/3"),
        ("redis://[::1]:1", "redis://[::1]:1/0"),
        ("unix:///run/r.sock", "redis+socket:///run/r.sock?virtual_host=0"),
        ("unix://u:p@/run/r.sock?db=1", "redis+socket:///run/r.sock?virtual_host=1"),
    ],
)
def test_celery_gets_the_same_server_and_no_password(url: str, celery: str) -> None:
    assert celery_url(url) == celery


@pytest.mark.parametrize("url", ["", "h:1", "http://h", "secret@h", "sentinel://h"])
def test_other_schemes_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"the URL of Redis has (the|no) scheme") as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=", "password=x", "db=0&protocol=3"])
def test_a_url_cannot_switch_checks_off(option: str) -> None:
    with pytest.raises(ConfigurationError, match=r"only \?db= is accepted there"):
        check_url(f"rediss://h?{option}")


def test_who_one_is_to_redis(password: Path) -> None:
    file = {"redis_password_file": password}
    assert credentials(redis_url="redis://h") is None
    assert credentials(redis_url="redis://:pw@h") == ("default", "pw")
    assert credentials(redis_url="redis://me:p%40w@h") == ("me", "p@w")
    assert credentials(redis_url="redis://h", **file) == ("agent.web-1", "current")
    assert credentials(redis_url="redis://me:pw@h", **file) == ("me", "current")
    assert credentials(redis_url="redis://me@h", redis_user="you", **file) == ("you", "current")
    with pytest.raises(ConfigurationError, match="the Redis user me has no password"):
        access(redis_url="redis://me@h")


def test_a_password_file_that_does_not_serve_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    for name, said in (("missing", "No such file"), ("empty", "no password in"), ("binary", "cannot read")):
        with pytest.raises(ConfigurationError, match=said):
            access(redis_url="redis://h", redis_password_file=tmp_path / name)


def test_no_password_is_shown(password: Path) -> None:
    settings = RedisSettings(redis_url="redis://me:secret@h", redis_password_file=password)
    shown = repr(settings) + str(settings) + repr(RedisAccess.of(settings, identity=None, user="x"))
    assert "current" not in shown
    assert "secret" not in shown


def test_tls_needs_certificates(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs an identity"):
        access(redis_url="rediss://h")
    with pytest.raises(ConfigurationError, match="only one of"):
        access(redis_url="rediss://h", redis_ca=tmp_path, redis_key=tmp_path)
    file = tmp_path / "file"
    file.write_bytes(b"\xffno certificate")
    with pytest.raises(ConfigurationError, match="cannot use the certificates for Redis"):
        access(redis_url="rediss://h", redis_ca=file, redis_certificate=file, redis_key=file)


def test_rules_are_equal_however_a_server_puts_them() -> None:
    """Redis 7.0 tells whoever has most of a category that it has the category, less the rest."""
    categories = {"hash": frozenset({"hget", "hset", "hdel", "hlen"})}
    ours = parse_acl(
        "reset resetchannels on #aa -@all +ping (resetchannels -@all +hget +hset +hdel ~a %R~b)", categories
    )
    theirs = "on sanitize-payload #aa resetchannels -@all +ping (%R~b ~a resetchannels -@all +@hash -hlen)"
    assert parse_acl(theirs, categories) == ours
    for other in (
        theirs.replace(" -hlen", ""),
        theirs.replace("%R~b", "~b"),
        theirs.replace("+ping", "+@all"),
        theirs.replace("#aa", "nopass"),
        theirs.replace("on ", "off "),
        theirs + " (+set)",
    ):
        assert parse_acl(other, categories) != ours
    assert parse_acl("+@all -hget", categories) != parse_acl("+@all", categories)
    assert parse_acl("+@all -hget +@hash", categories) == parse_acl("+@all", categories)
