"""Findings about Sentinels: whether they agree, how soon they act, and the rights that they give clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from redis.exceptions import NoPermissionError, ResponseError

from tachikoma.diagnosis.findings import Finding
from tachikoma.redis.sentinel import Address, Primary

__all__ = ["Answers", "ask_sentinels", "sentinel_findings"]

#: Silence of a primary after which Sentinels replace it, in milliseconds: shorter pauses happen on a busy host, and
#: callers wait for a longer one.
DOWN_AFTER_MS = range(1000, 5001)
#: Longest time of one attempt to fail over, in milliseconds; the next attempt waits twice as long.
MOST_FAILOVER_MS = 30_000
#: A majority that survives the loss of one needs three.
LEAST_SENTINELS = 3
#: Answers of one Sentinel: the fields of the primary, and whether it lists its users to any client; or its error.
Answers = tuple[Mapping[str, str], bool] | Exception


def ask_sentinels(primary: Primary) -> dict[Address, Answers]:
    """Ask each Sentinel. It blocks for 2 s for each that does not answer."""
    found: dict[Address, Answers] = {}
    for address, replies in primary.ask_each(("SENTINEL", "MASTER", primary.name), ("ACL", "LIST")).items():
        if isinstance(replies, Exception):
            found[address] = replies
            continue
        fields, users = replies
        if isinstance(fields, Exception):
            found[address] = fields
            continue
        found[address] = dict(zip(fields[::2], fields[1::2], strict=True)), not isinstance(users, NoPermissionError)
    return found


def sentinel_findings(name: str, answers: Mapping[Address, Answers]) -> Iterable[Finding]:
    """Find what is wrong with the Sentinels.

    Args:
        name: name of the primary.
        answers: what each Sentinel answered.
    """
    known = {address: answer for address, answer in answers.items() if not isinstance(answer, Exception)}
    for address, answer in answers.items():
        where = _place(address)
        if isinstance(answer, Exception):
            verb = "does not know the primary" if isinstance(answer, ResponseError) else "cannot be asked"
            yield Finding(where=where, what=f"{verb}: {answer}", remedy=f"start it with: sentinel monitor {name} …")
            continue
        fields, listed = answer
        yield from _timing_findings(where, name, fields)
        yield from _quorum_findings(where, name, fields)
        if listed:
            yield Finding(
                where=where,
                what="lists its users to any client, so any client may also change its primary",
                remedy="load the ACL file that `tachikoma redis acl --format sentinel` prints",
            )
    primaries = Counter(f"{fields.get('ip')}:{fields.get('port')}" for fields, _ in known.values())
    if len(primaries) > 1:
        yield Finding(
            where=f"Sentinels of {name}",
            what=f"name different primaries: {', '.join(sorted(primaries))}",
            remedy="wait for the end of a failover and check again; else SENTINEL RESET on those of the minority",
        )


def _timing_findings(where: str, name: str, fields: Mapping[str, str]) -> Iterable[Finding]:
    down_after = _number(fields, "down-after-milliseconds")
    if down_after not in DOWN_AFTER_MS:
        what = "a short pause of the primary causes a failover" if down_after < DOWN_AFTER_MS.start else (
            "calls are UNAVAILABLE for longer after a failure"
        )  # fmt: skip
        yield Finding(
            where=where,
            what=f"down-after-milliseconds is {down_after}: {what}",
            remedy=f"SENTINEL SET {name} down-after-milliseconds 2000",
        )
    failover = _number(fields, "failover-timeout")
    if failover > MOST_FAILOVER_MS:
        yield Finding(
            where=where,
            what=f"failover-timeout is {failover}: after a failover that fails, the next one waits {2 * failover} ms",
            remedy=f"SENTINEL SET {name} failover-timeout 10000",
        )


def _quorum_findings(where: str, name: str, fields: Mapping[str, str]) -> Iterable[Finding]:
    sentinels, quorum = _number(fields, "num-other-sentinels") + 1, _number(fields, "quorum")
    if sentinels < LEAST_SENTINELS:
        yield Finding(
            where=where,
            what=f"knows {sentinels} Sentinels: without one of them, there may be no majority for a failover",
            remedy="run three Sentinels on three hosts",
        )
    elif not sentinels // 2 < quorum < sentinels:
        effect = "all must be reachable" if quorum >= sentinels else "a minority can find the primary down"
        yield Finding(
            where=where,
            what=f"quorum is {quorum} of {sentinels} Sentinels: {effect}",
            remedy=f"SENTINEL SET {name} quorum {sentinels // 2 + 1}",
        )
    if not _number(fields, "num-slaves"):
        yield Finding(
            where=where, what="knows no replica, so nothing can replace the primary", remedy="start the replicas"
        )
    if fields.get("flags", "master") != "master":
        yield Finding(
            where=where,
            what=f"sees the primary as {fields['flags']}",
            remedy="see the logs of the primary and of the Sentinel",
        )


def _number(fields: Mapping[str, str], name: str) -> int:
    text = fields.get(name, "0")
    return int(text) if text.isdigit() else 0


def _place(address: Address) -> str:
    return f"Sentinel {address[0]}:{address[1]}"
