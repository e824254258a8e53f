"""What policy says about the targets of a batch, on real policies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from admissions import BOSS, peer
from batches import BatchStand
from tachikoma.vocabulary.batches import ApprovalNeed, BatchRequest
from tachikoma_orchestrator.batches.examination import Examination
from tachikoma_orchestrator.batches.frozen import Frozen

Make = Callable[..., Awaitable[BatchStand]]
COMMANDS = 'allowedCommands: ["/usr/bin/true ..."]\n'


def limit(stand: BatchStand, above: int, *more: str) -> None:
    """Let the policy `free` require an approval above a number of targets."""
    fields = (f"requireApprovalAbove: {above}", f"approvers: [{BOSS}]", *more)
    stand.stand.change_policy(COMMANDS, COMMANDS + "".join(f"    {field}\n" for field in fields))


async def examined(stand: BatchStand, targets: tuple[str, ...], *command: str) -> Examination:
    request = BatchRequest(id="b", targets=targets, command=command or ("true",))
    frozen = Frozen.make(stand.stand.identity.current(), request, targets, peer())
    return await Examination.of(stand.rooms[0].starter, frozen)


async def test_a_policy_counts_its_own_targets(make: Make) -> None:
    stand = await make(3)
    limit(stand, 2)
    small = await examined(stand, ("web-1", "web-2", "db-1"))
    assert (small.needs, small.denied, small.approval_timeout) == ((), ("db-1",), timedelta(0))
    large = await examined(stand, ("web-1", "web-2", "web-3", "db-1"))
    assert large.needs == (ApprovalNeed(policy="free", targets=3, above=2, approvers=(str(BOSS),)),)
    assert large.approval_timeout == timedelta(hours=1)
    assert [bool(binding) for binding in large.bindings] == [True, True, True, False]


async def test_a_policy_that_always_requires_an_approval_has_no_number_below_which_none_is_needed(make: Make) -> None:
    stand = await make(1)
    found = await examined(stand, ("web-1",), "printf", "x")
    assert [(need.policy, need.targets, need.above) for need in found.needs] == [("careful", 1, 0)]


async def test_the_shortest_wait_for_an_approval_counts(make: Make) -> None:
    stand = await make(2)
    limit(stand, 1, "approvalTimeout: 5m")
    assert (await examined(stand, ("web-1", "web-2"))).approval_timeout == timedelta(minutes=5)


async def test_a_grant_without_such_a_number_is_preferred(make: Make) -> None:
    stand = await make(2)
    limit(stand, 1)
    assert (await examined(stand, ("web-1", "web-2"))).needs
    stand.stand.change_policy(
        "  - name: careful\n",
        '  - {name: trusted, subjects: ["**"], agents: ["*"], allowedCommands: ["/usr/bin/true ..."]}\n'
        "  - name: careful\n",
    )
    assert not (await examined(stand, ("web-1", "web-2"))).needs
