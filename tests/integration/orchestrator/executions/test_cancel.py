"""Cancel orders, on a real Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from members import AGENT, DOMAIN, OPERATOR, WEB, Stand
from patience import PATIENCE_SECONDS
from tachikoma.identity.signed_messages import CancelOrder
from tachikoma.identity.signing import verify
from tachikoma.identity.spiffe import service_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.executions import cancel as module
from tachikoma_orchestrator.executions.cancel import CANCEL_SECONDS, send_cancel, sent_cancels


async def test_a_cancel_order_is_signed_stored_for_a_while_and_published(
    redis: Redis, tmp_path: Path, redis_url: str
) -> None:
    stand = Stand(redis, tmp_path)
    async with redis.pubsub() as heard:
        await heard.subscribe(keys.control(AGENT))
        await heard.get_message(timeout=PATIENCE_SECONDS)
        await send_cancel(redis, stand.identity, AGENT, "job-7", by=str(OPERATOR), requested_by="spiffe://x/user/alice")
        message = await heard.get_message(ignore_subscribe_messages=True, timeout=PATIENCE_SECONDS)
    stored = await redis.get(keys.cancel(AGENT, "job-7"))
    assert message["data"] == b"job-7 " + stored
    assert 0 < await redis.ttl(keys.cancel(AGENT, "job-7")) <= CANCEL_SECONDS
    order = verify(stored.decode(), CancelOrder, stand.identity.current().bundle, service_id(DOMAIN, "orchestrator"))
    assert (order.jti, order.aud, order.sub) == ("job-7", str(WEB), str(OPERATOR))
    assert order.requested_by == "spiffe://x/user/alice"


async def test_the_latest_cancel_orders_are_sent_again_after_a_loss(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand(redis, tmp_path)
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    for name in ("job-1", "job-2", "job-3"):
        await send_cancel(redis, stand.identity, AGENT, name, by=str(OPERATOR), requested_by="")
    wanted = {name: await redis.get(keys.cancel(AGENT, name)) for name in ("job-2", "job-3")}
    await redis.delete(*(keys.cancel(AGENT, name) for name in ("job-1", *wanted)))
    async with redis.pubsub() as heard:
        await heard.subscribe(keys.control(AGENT))
        await heard.get_message(timeout=PATIENCE_SECONDS)
        await sent_cancels(redis).write_again(redis)
        for name, token in wanted.items():
            message = await heard.get_message(ignore_subscribe_messages=True, timeout=PATIENCE_SECONDS)
            assert message["data"] == f"{name} ".encode() + token
    assert {name: await redis.get(keys.cancel(AGENT, name)) for name in wanted} == wanted
    assert await redis.exists(keys.cancel(AGENT, "job-1")) == 0
    sent_cancels(redis)._orders.keep_seconds = -1
    await redis.delete(*(keys.cancel(AGENT, name) for name in wanted))
    await sent_cancels(redis).write_again(redis)
    assert await redis.exists(*(keys.cancel(AGENT, name) for name in wanted)) == 0
