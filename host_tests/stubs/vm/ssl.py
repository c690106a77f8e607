"""`ssl` over the VM's `tls`, as the ESP32's frozen module is."""

import tls
from tls import CERT_NONE, CERT_OPTIONAL, CERT_REQUIRED, PROTOCOL_TLS_CLIENT, PROTOCOL_TLS_SERVER

__all__ = ("CERT_NONE", "CERT_OPTIONAL", "CERT_REQUIRED", "SSLContext", "wrap_socket")


class SSLContext:
    def __init__(self, protocol):
        self._context = tls.SSLContext(protocol)
        self._context.verify_mode = CERT_NONE

    @property
    def verify_mode(self):
        return self._context.verify_mode

    @verify_mode.setter
    def verify_mode(self, mode):
        self._context.verify_mode = mode

    def load_cert_chain(self, certfile, keyfile):
        self._context.load_cert_chain(certfile, keyfile)

    def load_verify_locations(self, cafile=None, cadata=None):
        self._context.load_verify_locations(cafile or cadata)

    def wrap_socket(self, sock, **options):
        return self._context.wrap_socket(sock, **options)


def wrap_socket(
    sock, server_side=False, key=None, cert=None, cert_reqs=CERT_NONE, cadata=None,
    server_hostname=None, do_handshake=True,
):
    context = SSLContext(PROTOCOL_TLS_SERVER if server_side else PROTOCOL_TLS_CLIENT)
    if cert or key:
        context.load_cert_chain(cert, key)
    if cadata:
        context.load_verify_locations(cadata=cadata)
    context.verify_mode = cert_reqs
    return context.wrap_socket(
        sock, server_side=server_side, server_hostname=server_hostname,
        do_handshake_on_connect=do_handshake,
    )
