"""TLS below a link: certificates, why one was refused, and the time that they are checked against.

Theory
 1. The chain and the host's name are always verified, against the CA of secrets.json and no other.
 2. The handshake is stepped: the stream does not block, and reading or writing drives it on. Most
    steps are over at once; two or three compute with elliptic curves. A P-256 certificate keeps
    them short (an ESP32 takes some tenths of a second for the longest, RSA keys of 4,096 bits far
    more); nobody can cut them into smaller ones, so they are not taken while an EVSE stops.
 3. Certificates are valid from a moment to another, and a board without a battery wakes up in the
    year 2000. It goes by the first of these that it has: the clock that ran on over the reset; the
    later of the journal's last time and the moment of provisioning (`tls.at_s`). That is a bound
    from below, near enough for certificates that live for months. Where it is too early for one
    that was renewed since ("not yet valid"), a time server is asked (SNTP), at most once a try.
 4. A time server is anybody on the path. What it says serves certificates and nothing else: it
    goes into the RTC without the breadcrumb that would let it pass for the time (`wallclock.py`),
    is never earlier than the bound, and is thrown away when it makes a certificate look expired.
    So a liar can keep the board offline, which he can without lying too; and he can let a
    certificate pass that has expired, whose key he must hold as well. Messages have MACs of their
    own. Once the gateway has told the time, no time server is asked.

Limits: no revocation lists, no session resumption. A TLS stream that failed is not used again.
"""

from binascii import a2b_base64

import tls
from wattlock.errors import LinkError

from . import wallclock

_ALERT = -0x7780  # the other end sent a fatal alert
_NOT_TLS = (-0x7200, -0x7100, -0x7700, -0x6E80, -0x6E00)  # what a stranger's bytes look like
_HUNG_UP = (32, 104, 113, 128, -0x7280)

# what Mbed TLS writes, and the word for the record; the first that fits
_REASONS = (
    ("trusted CA", "tls_untrusted"),
    ("Common Name", "tls_host"),
    ("expired", "tls_expired"),
    ("future", "tls_not_yet_valid"),
)


class Tls:
    def __init__(self, server, random, since):
        self._server = server
        self._random = random
        self._since = since
        self._floor_ms = 0
        self._guess = False  # the RTC shows what a time server said
        self._wanted = False
        self._sntp = None
        self._seen = False  # the other end's certificate was found good so far
        self._context: tls.SSLContext | None = None
        self._client = False  # we have a certificate of our own

    def load(self, certificates):
        """Take over a set: `ca` (one or more, with a space between), and `cert` with `key` where
        the other end wants one; each in base64 of DER. The set before stays where this one cannot
        be used. Raises LinkError."""
        field = "ca"
        try:
            context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
            context.verify_mode = tls.CERT_REQUIRED  # pyright: ignore[reportAttributeAccessIssue]
            context.verify_callback = self._verified  # pyright: ignore[reportAttributeAccessIssue]
            for text in certificates["ca"].split():
                context.load_verify_locations(a2b_base64(text))
            if certificates.get("cert"):
                field = "cert"
                context.load_cert_chain(
                    a2b_base64(certificates["cert"]), a2b_base64(certificates["key"])
                )
        except ValueError as e:
            raise LinkError("secrets.tls.%s: cannot be used: %s" % (field, e), "tls_" + field)
        self._context = context
        self._client = field == "cert"

    def _verified(self, der, depth):
        self._seen = True
        return 0

    def wrap(self, sock, host):
        """The stream over a socket that is connected; nothing has been said yet."""
        self._seen = False
        assert self._context is not None
        return self._context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)

    def judge(self, e, silent, again):
        """The word for what ended a connection that was being made, or None where it was not TLS.
        `silent`: the other end has not said a word inside TLS. One that hangs up then, having
        shown its own certificate, did not like ours, or missed it: some say so, some just go.
        `again`: the try before came to nothing either. A network that is cut looks the same, so
        nothing is made of it the first time."""
        code = e.args[0] if e.args else None
        if isinstance(e, ValueError):
            for text, word in _REASONS:
                if text in str(code):
                    self._mistimed(word)
                    return word
            return "tls_certificate"
        hung = again and code in _HUNG_UP
        if code == _ALERT or (silent and self._seen and hung):
            if not self._seen:
                return "tls_alert"
            return "tls_client_refused" if self._client else "tls_client_missing"
        if code in _NOT_TLS or (not self._seen and hung):
            return "tls_plain"  # or hung up on the first bytes of TLS, which comes to the same
        return None

    # -- time ----------------------------------------------------------------------------------

    def at_least(self, unix_ms):
        """The RTC shows this moment, or a later one."""
        self._floor_ms = max(self._floor_ms, unix_ms)
        if wallclock.shown_ms() < self._floor_ms:
            wallclock.show(self._floor_ms)

    def _mistimed(self, word):
        if wallclock.recall() is not None:
            return  # the gateway's time, or what the RTC kept of it
        if word == "tls_not_yet_valid":
            self._wanted = bool(self._server)
        elif word == "tls_expired" and self._guess:
            self._guess = False
            wallclock.show(self._floor_ms)

    def ready(self, ticks, net):
        """Is there a time to check certificates against? Until then: one step of asking for it."""
        if not self._wanted:
            return True
        try:
            if self._sntp is None:
                from .sntp import Sntp

                self._sntp = Sntp(self._server, net.dns(), self._random, self._since, ticks)
            unix_ms = self._sntp.turn(ticks)
            if unix_ms is None:
                return False
            if unix_ms > self._floor_ms:
                wallclock.show(unix_ms)
                self._guess = True
        except OSError:
            pass  # the certificate is tried as it is
        self._sntp = None
        self._wanted = False
        return True
