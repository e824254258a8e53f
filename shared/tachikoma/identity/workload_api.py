"""An identity from the SPIFFE Workload API, for instance of a SPIRE agent on the same host.

The `spiffe` package holds the stream and reconnects. Its updates are parsed by the rules of this package, since its
own parser accepts IDs that the standard does not allow. Its `X509Source` is not used, because it stays closed after the
first error; here the identity in use is retained until a valid new one arrives.
"""

from __future__ import annotations

import threading

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import WorkloadApiClient
from spiffe.workloadapi.x509_context import X509Context

from tachikoma.config.logs import get_logger
from tachikoma.errors import ConfigurationError
from tachikoma.identity.certificates import id_of
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import Svid, renewed

__all__ = ["WorkloadSvidSource"]

#: Longest wait for the first identity, in seconds.
FIRST_SECONDS = 10.0
#: Wait before a refused stream is requested again, in seconds.
RETRY_SECONDS = 1.0

log = get_logger(__name__)

Material = tuple[bytes, bytes, bytes, dict[str, bytes]]


def _material(context: X509Context) -> Material:
    """Return an update as PEM: chain, key, own bundle, and federated bundles by trust domain.

    Raises:
        InvalidIdentity: the update is not complete.
    """
    svid = context.default_svid
    chain = svid.cert_chain
    own = id_of(chain[0]).trust_domain
    bundles = {
        # Sorted, so that equal roots give equal text.
        bundle.trust_domain.name: b"".join(sorted(root.public_bytes(Encoding.PEM) for root in bundle.x509_authorities))
        for bundle in context.x509_bundle_set.bundles
    }
    if own not in bundles:
        raise InvalidIdentity(f"the Workload API gave no bundle of trust domain {own}")
    return (
        b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain),
        svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        bundles.pop(own),
        bundles,
    )


class WorkloadSvidSource:
    """The default identity that the Workload API gives this process. Safe to use from several threads."""

    def __init__(self, endpoint: str, *, first_seconds: float = FIRST_SECONDS) -> None:
        """Request the identity and wait for it.

        Args:
            endpoint: `unix:///path` of the Workload API.
            first_seconds: longest wait for the first identity.

        Raises:
            ConfigurationError: the endpoint does not answer, or gave no usable identity in time.
        """
        self.place = endpoint
        self._lock = threading.Lock()
        self._svid: Svid | None = None
        self._problem = "no answer came"
        self._answered = threading.Event()
        self._closed = threading.Event()
        self._failed = threading.Event()
        try:
            self._client = WorkloadApiClient(endpoint)
        except Exception as error:
            # The errors of the package have no narrower common class.
            raise ConfigurationError(f"cannot use the Workload API at {endpoint}: {error}") from error
        self._thread = threading.Thread(target=self._watch, name="workload-api", daemon=True)
        self._thread.start()
        self._answered.wait(first_seconds)
        if self._svid is None:
            problem = self._problem
            self.close()
            raise ConfigurationError(
                f"the Workload API at {endpoint} gave this process no identity in {first_seconds:g} s: {problem}; "
                "check that it has a registration entry"
            )

    def current(self) -> Svid:
        """Return the most recent valid identity."""
        with self._lock:
            assert self._svid is not None
            return self._svid

    def close(self) -> None:
        """Close the stream. The last identity stays available."""
        self._closed.set()
        self._failed.set()
        self._thread.join()
        self._client.close()

    def _watch(self) -> None:
        while not self._closed.is_set():
            self._failed.clear()
            if self._closed.is_set():
                return
            stream = self._client.stream_x509_contexts(self._take, self._fail)
            # The package reconnects by itself, unless the other side refuses for good.
            self._failed.wait()
            stream.cancel()
            self._closed.wait(RETRY_SECONDS)

    def _fail(self, error: Exception) -> None:
        self._keep(str(error))
        self._failed.set()

    def _keep(self, problem: str) -> None:
        self._problem = problem
        if self._svid is not None:
            log.warning("svid.kept", reason=problem, spiffe_id=str(self._svid.spiffe_id))

    def _take(self, context: X509Context) -> None:
        try:
            material = _material(context)
            with self._lock:
                old = self._svid
                if old is None:
                    self._svid, problem = Svid.load(*material), ""
                else:
                    self._svid, problem = renewed(old, *material)
                svid = self._svid
        except InvalidIdentity as error:
            self._keep(str(error))
            return
        if problem:
            self._keep(problem)
        if svid is not old:
            log.info("svid.changed", spiffe_id=str(svid.spiffe_id), until=svid.not_after.isoformat())
        self._answered.set()
