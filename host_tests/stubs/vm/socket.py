"""`socket` as on an ESP32.

What differs from the unix port, and hides faults there: `setblocking(True)` takes the timeout
away; `getaddrinfo` gives (host, port) pairs; nothing works until Wi-Fi is connected; name lookups
and links fail when the board's control port says so. A blocking call without data really blocks.
What goes to port 53 or 5353 is answered by `_names`, what goes to port 123 by the time server
that the control port named, if any.

Limits: a link that goes down is seen at the next call (ECONNABORTED), not by a poll that waits.
"""

import io
from errno import EAGAIN, ECONNABORTED, EHOSTUNREACH

from wires import dns, online, sleep_ms, sntp_port, ticks_diff, ticks_ms, waited
from wires import socket as _native

AF_INET = _native.AF_INET
AF_INET6 = _native.AF_INET6
SOCK_STREAM = _native.SOCK_STREAM
SOCK_DGRAM = _native.SOCK_DGRAM
SOL_SOCKET = _native.SOL_SOCKET
SO_REUSEADDR = _native.SO_REUSEADDR
SO_KEEPALIVE = _native.SO_KEEPALIVE
IPPROTO_TCP = 6
IPPROTO_UDP = 17
TCP_NODELAY = 1

_EAI_FAIL = -202
_SLOW_MS = 8000


def getaddrinfo(host, port, af=0, type=0, proto=0, flags=0):
    if host.strip(".0123456789"):  # a name
        if dns() > 1:
            sleep_ms(_SLOW_MS)
        if dns() % 2 or not online():
            raise OSError(_EAI_FAIL)
    return [(AF_INET, type or SOCK_STREAM, 0, host, _pair(_sockaddr(host, port)))]


def _sockaddr(host, port):
    return _native.getaddrinfo(host, port, AF_INET, SOCK_STREAM)[0][4]


def _pair(sockaddr):
    return _native.inet_ntop(AF_INET, bytes(sockaddr[4:8])), sockaddr[2] << 8 | sockaddr[3]


class socket(io.IOBase):
    def __init__(self, af=AF_INET, type=SOCK_STREAM, proto=0, _socket=None):
        s = self._s = _socket or _native.socket(af, type, proto)
        self.fileno = s.fileno
        self.setsockopt = s.setsockopt
        self._told = None  # (ticks, reply) of the name server
        self._waits = True

    def setblocking(self, yes):
        self.settimeout(None if yes else 0)

    def settimeout(self, s):
        self._waits = s != 0
        self._s.settimeout(s)

    def connect(self, address):
        if not online():
            raise OSError(EHOSTUNREACH)
        self._up().connect(_sockaddr(*address))

    def bind(self, address):
        self._s.bind(_sockaddr(address[0] or "0.0.0.0", address[1]))

    def listen(self, backlog=2):
        self._s.listen(backlog)

    def accept(self):
        s, address = self._up().accept()
        return socket(_socket=s), _pair(address)

    def _up(self):
        if not online():
            raise OSError(ECONNABORTED)
        if self._waits:
            waited(10000)
        return self._s

    def read(self, *n):
        return self._up().read(*n)

    def readinto(self, *buf):
        return self._up().readinto(*buf)

    def readline(self, *n):
        return self._up().readline(*n)

    def recv(self, n, *flags):
        if self._told is not None:
            at, reply = self._told
            if ticks_diff(ticks_ms(), at) < 0:
                raise OSError(EAGAIN)
            self._told = None
            return reply
        return self._up().recv(n, *flags)

    def recvfrom(self, n):
        data, address = self._up().recvfrom(n)
        return data, _pair(address)

    def write(self, *buf):
        return self._up().write(*buf)

    def send(self, data, *flags):
        return self._up().send(data, *flags)

    def sendall(self, data):
        self._up().write(data)

    def sendto(self, data, address):
        if address[1] in (53, 5353):
            self._up()
            if self._told is None:
                from _names import answer

                self._told = answer(data)
            return len(data)
        if address[1] == 123:
            address = "127.0.0.1", sntp_port() or 9
        return self._up().sendto(data, _sockaddr(*address))

    def makefile(self, *mode):
        return self

    def close(self):
        self._s.close()

    def ioctl(self, request, arg):
        if request == 10:  # MP_STREAM_GET_FILENO
            return self._s.fileno()
        if request == 4:  # MP_STREAM_CLOSE
            self._s.close()
        return 0
