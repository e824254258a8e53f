"""A SPIFFE Workload API on a unix socket, as a SPIRE agent serves it: for one workload, with what it is given."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from spiffe._proto import workload_pb2 as pb
from spiffe._proto import workload_pb2_grpc

from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE


def _der(pem: bytes) -> bytes:
    return b"".join(item.public_bytes(Encoding.DER) for item in x509.load_pem_x509_certificates(pem))


class WorkloadApi(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """Tells every stream of each new identity at once. A context manager."""

    def __init__(self, socket: Path) -> None:
        self.endpoint = f"unix://{socket}"
        self._changed = threading.Condition()
        self._answer: pb.X509SVIDResponse | None = None
        self._number = 0
        self._closed = False
        #: Streams there ever were.
        self.streams = 0
        self._server = grpc.server(ThreadPoolExecutor(8))
        workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{socket}")

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.stop(None).wait()

    def give(self, files: Mapping[str, bytes], federated: Mapping[str, bytes] | None = None) -> None:
        """Take PEM as it stands in files; federated bundles by trust domain."""
        key = load_pem_private_key(files[KEY_FILE], None)
        leaf = x509.load_pem_x509_certificate(files[CERTIFICATE_FILE])
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        svid = pb.X509SVID(
            spiffe_id=names.get_values_for_type(x509.UniformResourceIdentifier)[0],
            x509_svid=_der(files[CERTIFICATE_FILE]),
            x509_svid_key=key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            bundle=_der(files[BUNDLE_FILE]),
        )
        bundles = {f"spiffe://{domain}": _der(pem) for domain, pem in (federated or {}).items()}
        with self._changed:
            self._answer = pb.X509SVIDResponse(svids=[svid], federated_bundles=bundles)
            self._number += 1
            self._changed.notify_all()

    def FetchX509SVID(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.X509SVIDResponse]:  # noqa: N802
        if ("workload.spiffe.io", "true") not in [(key, value) for key, value in context.invocation_metadata()]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no security header")
        context.add_callback(self._wake)
        self.streams += 1
        told = 0
        while True:
            with self._changed:
                while self._number == told and not self._closed and context.is_active():
                    self._changed.wait()
                if self._closed or not context.is_active():
                    return
                answer, told = self._answer, self._number
            assert answer is not None
            yield answer

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
