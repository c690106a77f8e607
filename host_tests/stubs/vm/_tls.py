"""`tls` that checks certificates against the board's own clock, as a chip does.

The VM's Mbed TLS goes by this machine's clock, which is never unset. Here the dates of each
certificate are looked at once more, against what the board's RTC shows, and the refusal is the
same ValueError. Everything else is the VM's.
"""

from utime import mktime
from wires import tls as _native
from wires import unix_ms

CERT_NONE = _native.CERT_NONE
CERT_REQUIRED = _native.CERT_REQUIRED
PROTOCOL_TLS_CLIENT = _native.PROTOCOL_TLS_CLIENT
PROTOCOL_TLS_SERVER = _native.PROTOCOL_TLS_SERVER

_LATE = "\nThe certificate validity has expired\n"
_EARLY = "\nThe certificate validity starts in the future\n"


def _inside(der, at):
    """(begin, end) of what the DER element at `at` holds."""
    size = der[at + 1]
    at += 2
    if size & 0x80:
        n = size & 0x7F
        size = int.from_bytes(der[at : at + n], "big")
        at += n
    return at, at + size


def _validity_s(der):
    """Unix seconds: not before, not after (RFC 5280, UTCTime)."""
    at, _ = _inside(der, 0)
    at, _ = _inside(der, at)
    for _ in range(4):  # version, serial number, algorithm, issuer
        _, at = _inside(der, at)
    at, _ = _inside(der, at)
    found = []
    for _ in range(2):
        begin, at = _inside(der, at)
        text = bytes(der[begin : begin + 12]).decode()
        numbers = [int(text[i : i + 2]) for i in range(0, 12, 2)]
        found.append(mktime((2000 + numbers[0],) + tuple(numbers[1:]) + (0, 0, 0)))
    return found


class SSLContext:
    def __init__(self, protocol):
        self._context = context = _native.SSLContext(protocol)
        self.load_verify_locations = context.load_verify_locations
        self.load_cert_chain = context.load_cert_chain
        context.verify_callback = self._check
        self.verify_callback = None
        self.wrong = None

    @property
    def verify_mode(self):
        return self._context.verify_mode

    @verify_mode.setter
    def verify_mode(self, mode):
        self._context.verify_mode = mode

    def _check(self, der, depth):
        begin, end = _validity_s(der)
        now = unix_ms() // 1000
        if not begin <= now <= end:
            self.wrong = _EARLY if now < begin else _LATE
        if self.verify_callback is not None:
            self.verify_callback(der, depth)
        return -1 if self.wrong and not depth else 0

    def wrap_socket(self, sock, **options):
        self.wrong = None
        return _Stream(self, self._context.wrap_socket(sock, **options))


class _Stream:
    def __init__(self, context, stream):
        self._context = context
        self._stream = stream
        self.close = stream.close
        self.cipher = stream.cipher

    def readinto(self, buffer):
        try:
            return self._stream.readinto(buffer)
        except OSError as e:
            self._fail(e)

    def write(self, data):
        try:
            return self._stream.write(data)
        except OSError as e:
            self._fail(e)

    def _fail(self, e):
        if self._context.wrong:
            raise ValueError(self._context.wrong)
        raise e
