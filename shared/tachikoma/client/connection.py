"""The connection to the orchestrator, which follows the client's identity.

The credentials of a gRPC channel never change. When the identity is renewed, calls therefore go over a new channel, and
the old one is closed when its last call has ended.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from tachikoma.client.diagnosis import Trouble, diagnose
from tachikoma.client.profile import Profile
from tachikoma.client.rpc_errors import error_from_rpc, is_answer
from tachikoma.client.traced_channel import traced
from tachikoma.config.channels import KEEPALIVE_OPTIONS, MAX_MESSAGE_BYTES, proxy_hint, proxy_options, target_of
from tachikoma.config.logs import get_logger
from tachikoma.errors import FailedPrecondition, TachikomaError, Unauthenticated, Unavailable
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.open import open_identity
from tachikoma.identity.renewal import HALF, due
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import Svid

if TYPE_CHECKING:
    from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionAsyncStub

__all__ = ["Connection"]

log = get_logger(__name__)

#: After this time without a connection, the reason is looked for and logged.
QUIET_SECONDS = 1.0
#: Longest time to wait for a connection after that. Then a call is made anyway, which fails with a reason.
LOUD_SECONDS = 9.0
#: The same where the host answers that nothing listens there, so that a caller knows it within 3 s.
REFUSED_SECONDS = 1.0
#: How long a call may go on over a connection whose root was removed from the bundle. Then the call is resumed.
REMOVED_ROOT_SECONDS = 5.0

#: Shortest time between two attempts to renew the client's certificate.
RENEWAL_SECONDS = 60.0
#: How long a client that is closed waits for a renewal that has begun.
RENEWAL_WAIT_SECONDS = 5.0

#: The next of several addresses is tried too if one is silent for this time, also within its TLS handshake; gRPC's
#: default.
NEXT_ADDRESS_MS = 250

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    *KEEPALIVE_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.happy_eyeballs_connection_attempt_delay_ms", NEXT_ADDRESS_MS),
]


class _Grpc:
    """gRPC's threads, which exist in one process only."""

    #: The process that made the first channel; None if there is none yet.
    process: int | None = None


def _check_process(process: int | None, happened: str) -> None:
    """Check that the process in which something happened is this one; None if it did not happen.

    Raises:
        FailedPrecondition: it was before a fork of this process. A call would wait forever.
    """
    if process not in (None, os.getpid()):
        raise FailedPrecondition(
            f"a client was {happened} in process {process} before it forked this one; threads and connections do not "
            "survive a fork: start processes with the method `spawn`, or make the first client after the fork"
        )


class Connection:
    """The channel to the orchestrator, replaced when the client's identity is renewed."""

    def __init__(self, profile: Profile) -> None:
        """Open the identity and check that it can be used; nothing is connected yet.

        Args:
            profile: where the orchestrator is, and the client's identity.

        Raises:
            ConfigurationError: the identity cannot be read.
            FailedPrecondition: a client was used in the process that forked this one.
            Unauthenticated: the identity is expired, or not trusted by its own bundle.
        """
        self._profile = profile
        self._closed = False
        #: Why the last attempt to connect failed; None if it did not, or the reason is not known.
        self._trouble: Trouble | None = None
        #: The last line that said what is waited for; empty since there was a connection.
        self._said = ""
        _check_process(_Grpc.process, "used")
        #: The process that made the client. The event loop of `Client` has its thread there only.
        self._process = os.getpid()
        self._identity = open_identity(profile.identity)
        svid = self._identity.current()
        try:
            svid.verify()
            self._trusted(svid)
        except InvalidIdentity as error:
            self._identity.close()
            # Checked here, since a handshake would only say that it failed.
            raise Unauthenticated(f"your identity in {self._identity.place} cannot be used: {error}") from None
        #: The SPIFFE ID of the client.
        self.spiffe_id = str(svid.spiffe_id)
        self._channel: grpc.aio.Channel | None = None
        #: The stub of the channel.
        self._stub: RemoteExecutionAsyncStub | None = None
        #: The identity that the channel was made with.
        self._used = svid
        #: The renewal of the client's own certificate that runs beside the calls, if any.
        self._renewal: asyncio.Task[None] | None = None
        #: Time of the monotonic clock before which no renewal is tried.
        self._next_renewal = 0.0
        #: Channels of earlier identities, each closed by its task when its last call has ended.
        self._retired: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    def check_usable(self) -> None:
        """Check that this connection can be used in this process.

        Raises:
            FailedPrecondition: it is closed, or was made before a fork of this process.
        """
        if self._closed:
            raise FailedPrecondition("this client is closed; make a new one")
        _check_process(_Grpc.process, "used")
        _check_process(self._process, "made")

    async def close(self) -> None:
        """Close all channels; calls in progress end as cancelled. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        await self._finish_renewal()
        channels = list(self._retired.values())
        for task in list(self._retired):
            task.cancel()
        if self._channel is not None:
            channels.append(self._channel)
            self._channel = None
        for channel in channels:
            await channel.close()
        self._identity.close()

    def stub(self) -> RemoteExecutionAsyncStub:
        """Return the stub of a channel with the client's current identity.

        Raises:
            Unauthenticated: the identity has expired, or its bundle no longer covers the orchestrator.
        """
        self.check_usable()
        channel = self._current_channel()
        if self._stub is None:
            self._stub = RemoteExecutionStub(traced(channel))
        return self._stub

    async def ready(self, subject: str = "") -> bool:
        """Wait for a connection, for up to 10 s, so that calls reach a busy or distant server.

        A wrong certificate of the server does not become right by waiting, so it is reported after a second. A host
        on which nothing listens is reported after two.

        Args:
            subject: id of the execution or batch that the connection is for; the line that says what is waited for
                names it. Empty if there is none.

        Returns:
            Whether there is a connection.

        Raises:
            Unauthenticated: as `stub`.
        """
        self.check_usable()
        channel = self._current_channel()
        self._renew_if_due()
        if channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
            connected = await _connected(channel, QUIET_SECONDS)
            if not connected and not await _connected(channel, await self._explain(subject)):
                return False
        self._trouble, self._said = None, ""
        return True

    def _renew_if_due(self) -> None:
        """Renew the client's certificate beside its calls, if it came with a token and half of its life is over."""
        place, now = self._profile.identity, time.monotonic()
        if not isinstance(place, Path) or now < self._next_renewal or due(self._used, HALF).total_seconds() > 0:
            return
        self._next_renewal = now + RENEWAL_SECONDS
        # Imported when it is needed, which is rare.
        from tachikoma.client.membership.renewal import renew_in_passing

        self._renewal = asyncio.get_running_loop().create_task(renew_in_passing(place))

    async def _finish_renewal(self) -> None:
        """Wait until a running renewal ends, so that a command that is shorter than its renewal renews too."""
        if self._renewal is not None and not self._renewal.done():
            await asyncio.wait({self._renewal}, timeout=RENEWAL_WAIT_SECONDS)
            self._renewal.cancel()

    async def _explain(self, subject: str) -> float:
        """Find and log the reason why there is no connection, and return the time to wait, in seconds."""
        address = self._profile.address
        svid = self._used
        found = await asyncio.to_thread(
            diagnose, address, self._profile.server_name, self._trusted(svid).pem, svid.certificate_pem, svid.key_pem
        )
        if found is None or not found.lasting:
            purpose = f" for {subject}" if subject else ""
            cause = proxy_hint(address) if found is None else f": {found.text}"
            line = f"waiting for the orchestrator at {address}{purpose}{cause}"
            if line != self._said:
                log.warning(line)
            self._said = line
        self._trouble = found
        if found is not None and found.lasting:
            return 0
        return REFUSED_SECONDS if found is not None and found.refused else LOUD_SECONDS

    def error_of(self, error: grpc.aio.AioRpcError) -> TachikomaError:
        """Convert the failure of a call into the error that the server raised, or that describes the connection."""
        trailing = [(str(key), value) for key, value in error.trailing_metadata() or ()]
        translated = error_from_rpc(error.code(), error.details() or "", trailing)
        if is_answer(error) or type(translated) is not Unavailable:
            return translated
        address = self._profile.address
        if self._trouble is not None:
            cause = self._trouble.text
        else:
            question = f"is it running, and does it trust your certificate?{proxy_hint(address)}"
            cause = f"{error.details()}; {question}"
        return Unavailable(
            f"cannot reach the orchestrator at {address}: {cause}", retry_after_seconds=translated.retry_after_seconds
        )

    def _current_channel(self) -> grpc.aio.Channel:
        svid = self._identity.current()
        self._check_expiry(svid)
        if self._channel is None or svid is not self._used:
            trusted = self._check_trust(svid)
            if self._channel is not None:
                self._retire(self._channel, trusted)
            credentials = grpc.ssl_channel_credentials(trusted.pem, svid.key_pem, svid.certificate_pem)
            options = [
                *_CHANNEL_OPTIONS,
                *proxy_options(self._profile.address),
                ("grpc.ssl_target_name_override", self._profile.server_name),
            ]
            _Grpc.process = os.getpid()
            self._channel = grpc.aio.secure_channel(target_of(self._profile.address), credentials, options)
            self._stub = None
            self._used = svid
        return self._channel

    def _check_expiry(self, svid: Svid) -> None:
        """Refuse an expired identity, with which each handshake would fail and be repeated for a while."""
        if svid.not_after <= datetime.now(UTC):
            raise Unauthenticated(
                f"your identity in {self._identity.place} ended at {svid.not_after:%Y-%m-%d %H:%M:%S} UTC "
                "and was not renewed"
            )

    def _check_trust(self, svid: Svid) -> TrustBundle:
        try:
            return self._trusted(svid)
        except InvalidIdentity as error:
            raise Unauthenticated(f"the orchestrator is not trusted any more: {error}") from None

    def _trusted(self, svid: Svid) -> TrustBundle:
        """Return the only bundle that the orchestrator's certificate may be verified with."""
        return svid.bundles.of(self._profile.trust_domain or svid.spiffe_id.trust_domain)

    def _retire(self, channel: grpc.aio.Channel, trusted: TrustBundle) -> None:
        """Close a replaced channel when its calls have ended, or when its certificates are no longer good."""
        seconds = max((self._used.not_after - datetime.now(UTC)).total_seconds(), REMOVED_ROOT_SECONDS)
        if not set(self._trusted(self._used).roots) <= set(trusted.roots):
            seconds = REMOVED_ROOT_SECONDS
        task = asyncio.get_running_loop().create_task(channel.close(seconds))
        self._retired[task] = channel
        task.add_done_callback(self._retired.pop)


async def _connected(channel: grpc.aio.Channel, seconds: float) -> bool:
    """Wait for the connection of a channel, and return whether it came in time."""
    try:
        async with asyncio.timeout(seconds):
            await channel.channel_ready()
    except TimeoutError:
        return False
    return True
