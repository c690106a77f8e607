"""A connection that is never waited for: what both links to the gateway share.

Each `turn` is one slice of the way: a look whether the name's address has come, the beginning of a
connection, a look whether it stands, one step of the TLS handshake, then one write and one read.
All of them return at once, so nothing here blocks under an ESP32's rule that `setblocking(True)`
has no timeout. The slice that takes longest is a step of the handshake in which the chip computes
(see `tls.py`): no step is taken while an EVSE stops or unlocks (`calm`).

Over TLS nothing is different but the stream: until the handshake is over it takes and gives
nothing, and asking drives it on. A write that it did not take whole is asked again with the same
bytes, as Mbed TLS wants it.

What ends a connection is a LinkError; its second argument, where there is one, is a word for the
record. The caller then calls `rebuild`; the next try is made after a pause, longer each time.

Limits: IPv4.
"""

import select
import socket

from wattlock.errors import LinkError

_FIRST_ROOM = 512  # the buffer grows when a longer packet is announced
_SEND_ROOM = 2048
_GREETING_MS = 10000
_FIRST_WAIT_MS = 4000
_LAST_WAIT_MS = 120000

# states
_OFF = 0
_CONNECTING = 1
_GREETING = 2
_UP = 3


class Outbox:
    """What is to be sent, in a buffer made at the start, when the heap was in one piece."""

    def __init__(self):
        self.out = bytearray(_SEND_ROOM)
        self.waiting = 0  # bytes in it
        self.tried = 0  # bytes of the write that was not taken whole

    def write(self, data, n=None):
        begin = self.waiting
        end = begin + (len(data) if n is None else n)
        if end > len(self.out):
            self.out += bytearray(end - len(self.out))
        self.out[begin:end] = data if n is None else memoryview(data)[:n]
        self.waiting = end


class Link:
    """A link adds `_greet(ticks)`: what is said first; `_keep(ticks)`: deadlines; `_packet()`:
    take one whole packet off the input, False while there is none."""

    errors = (
        OSError,
        ValueError,
        IndexError,
        AssertionError,
        TypeError,
        MemoryError,
        LinkError,
    )

    def __init__(self, config, secrets, net, since, random, outbox):
        self._host = config["host"]
        self._port = config["port"]
        self._net = net
        self._since = since
        self._random = random
        self._pipe = outbox
        self._tls = None
        self._certificates = None if config["insecure"] else secrets["tls"]  # to be taken over
        self._sntp = config["sntp"]
        self._least_ms = 0
        self._address: tuple | None = None
        self.lookup = self.found = None  # of a host that has a name
        self._fresh = False  # the address need not be asked for
        self._raw = self._sock = None
        self._poll = None
        self._state = _OFF
        self._began = 0  # ticks when this state began
        self._wait_ms = self._window_ms = 0
        self._rx = bytearray(_FIRST_ROOM)
        self._have = 0  # bytes in it
        self._taken = 0  # bytes of the packet that was dealt with, there or still to come
        self._box = None
        self._retained = False
        self._calm = True
        self._now = self._heard = self._spoke = 0  # ticks
        self.connected = False
        self.busy = False  # connected, and cannot take a message now
        self.why = None  # what ended or prevented the connection last
        self.losses = 0
        self.bytes_out = self.bytes_in = 0  # inside TLS

    def turn(self, ticks, calm=True):
        """Bring the link up and keep it; raises LinkError when it is lost. `calm` is False while
        an EVSE stops or unlocks: no connection is made then."""
        self._now = ticks
        self._calm = calm
        lacks = self._net.turn(ticks)
        if self._state != _OFF and not self._net.up:
            raise self._error("network lost")
        if lacks:
            raise self._error(LinkError("no network", lacks))
        if self._state != _UP and not calm:
            return
        try:
            if self._state == _OFF:
                if self._net.up and self._due():
                    self._connect(ticks)
            elif self._state == _CONNECTING:
                self._stands(ticks)
            else:
                self._flush()
                self._keep(ticks)  # pyright: ignore[reportAttributeAccessIssue]
        except self.errors as e:
            raise self._error(e)

    def receive(self):
        """The next message that has come, as (bytes, retained), or None. It stands in the input
        buffer until the next call."""
        if self._state < _GREETING or (self._state != _UP and not self._calm):
            return None
        try:
            self._fill()
            while self._packet():  # pyright: ignore[reportAttributeAccessIssue]
                if self._box is not None:
                    message = self._box
                    self._box = None
                    return message, self._retained
                self._fill()
        except self.errors as e:
            raise self._error(e)
        return None

    def rebuild(self):
        """Throw the connection away; the next one is made after a pause, longer each time."""
        self._close()
        self._began = self._now
        # spread over the whole pause: all boards of a broker that restarts lose it together
        self._window_ms = min(max(self._window_ms * 2, _FIRST_WAIT_MS), _LAST_WAIT_MS)
        self._wait_ms = self._window_ms * (32 + self._random(1)[0]) // 256
        self.connected = self.busy = False

    def at_least(self, unix_ms):
        """It is at least so late: certificates are checked against the clock."""
        self._least_ms = unix_ms

    def _secure(self):
        """TLS is made, or takes over other certificates, when a connection is: by then what only
        starts the agent has left the heap."""
        certificates = self._certificates
        if self._tls is None:
            from .tls import Tls

            self._tls = Tls(self._sntp, self._random, self._since)
            self._tls.at_least(max(self._least_ms, certificates.get("at_s", 0) * 1000))
        self._tls.load(certificates)
        self._certificates = None  # those that cannot be used are told of at every try

    def _error(self, e):
        self.losses += 1
        code = None
        if isinstance(e, LinkError):
            code = (e.args + (None,))[1]
            e = e.args[0]
        elif self._tls is not None and self._state == _GREETING:
            again = self._window_ms > _FIRST_WAIT_MS
            code = self._tls.judge(e, self._heard == self._began, again)
        self.why = code or str(e)
        text = "%s:%d: %s" % (self._host, self._port, e)
        return LinkError(text, code) if code else LinkError(text)

    def _close(self):
        for s in (self._sock, self._raw):  # a failed TLS stream does not close what it stands on
            if s is not None:
                try:
                    s.close()
                except self.errors:
                    pass
        if self._state == _CONNECTING:
            self._fresh = False  # the name may mean another address by now
        self._raw = self._sock = self._poll = None
        self._state = _OFF
        self._shrink()
        self._have = self._taken = 0
        self._box = None
        pipe = self._pipe
        pipe.waiting = pipe.tried = 0

    def _due(self):
        # below 0: without a network for some days, and ticks wrap
        return not 0 <= self._since(self._began) < self._wait_ms

    def _connect(self, ticks):
        if self._certificates is not None:
            self._secure()
        if self._tls is not None and not self._tls.ready(ticks, self._net):
            return
        if not self._fresh:
            host = self._host
            if host.strip(".0123456789"):
                from . import names

                host = names.find(self, host, self._net, self._random, self._since, ticks)
                if host is None:
                    return
            self._address = socket.getaddrinfo(host, self._port)[0][-1]
            self._fresh = True
        self._raw = self._sock = sock = socket.socket()
        self._state = _CONNECTING
        self._began = ticks
        sock.setblocking(False)
        try:
            sock.connect(self._address)  # pyright: ignore[reportArgumentType]
        except OSError as e:
            if e.errno not in (115, 119):  # EINPROGRESS on Linux, on ESP32
                raise
        self._poll = select.poll()
        self._poll.register(sock, select.POLLOUT)

    def _stands(self, ticks):
        ready = self._poll.poll(0)
        if not ready:
            self._late()
            return
        if ready[0][1] & (select.POLLERR | select.POLLHUP):
            raise OSError("refused or unreachable")
        self._poll = None
        if self._tls is not None:
            self._sock = self._tls.wrap(self._raw, self._host)
        self._state = _GREETING
        self._began = self._heard = self._spoke = ticks
        self._greet(ticks)  # pyright: ignore[reportAttributeAccessIssue]
        self._flush()

    def _late(self):
        if self._since(self._began) > _GREETING_MS:
            raise OSError("no answer")

    def _flush(self):
        pipe = self._pipe
        if not pipe.waiting:
            return
        size = pipe.tried or pipe.waiting
        n = self._sock.write(memoryview(pipe.out)[:size]) or 0
        pipe.tried = size - n
        if n:
            self._spoke = self._now
            self.bytes_out += n
            left = pipe.waiting - n
            if left:
                pipe.out[:left] = pipe.out[n : pipe.waiting]
            pipe.waiting = left

    def _fill(self):
        rx = self._rx
        n = min(self._taken, self._have)
        if n:
            self._taken -= n
            self._have -= n
            rx[: self._have] = rx[n : n + self._have]
        if not self._have:
            rx = self._shrink()  # a long packet has been dealt with
        if self._have == len(rx):
            return
        n = self._sock.readinto(memoryview(rx)[self._have :])
        if n is None:
            return
        if n == 0:
            self._ended()
            return
        self.bytes_in += n
        self._have += n
        self._heard = self._now

    def _shrink(self):
        if len(self._rx) > _FIRST_ROOM:
            self._rx = bytearray()  # so that its room can be used again
            self._rx = bytearray(_FIRST_ROOM)
        return self._rx

    def _ended(self):
        raise OSError(104, "closed by the other end")

    def _grow(self, size):
        """Is there room for a packet of this many bytes? It is made where the heap has it."""
        if size > len(self._rx):
            try:
                rx = bytearray(size)
            except MemoryError:
                return False
            rx[: self._have] = memoryview(self._rx)[: self._have]
            self._rx = rx
        return True
