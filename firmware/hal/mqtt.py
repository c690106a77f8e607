"""MQTT by umqtt.simple, which never gets to wait.

umqtt.simple writes and reads a socket as if it could wait for ever, and on an ESP32 it does: after
`setblocking(True)` nothing bounds it. So it never sees a socket. It is given a `_Pipe`: what it
writes is collected and leaves as one write per packet, as far as the socket takes it; what it
reads is a packet that has arrived whole and was measured first. The two answers it would wait for
(CONNACK, SUBACK) are shown to it as if they had come; the real ones are judged when they do.

So every `turn` is bounded: one non-blocking connect, read or write. The exception is looking up
the host's name, which blocks on every port; the answer is kept as long as it works.

A message that is longer than any of ours is read past and shown as an empty one, for the caller to
count; so a retained one cannot keep the link down.

QoS is 0 both ways: the uplink has acknowledgements of its own. Nothing here is trusted; the
messages are authenticated above.

Limits: no TLS yet: the configuration has to say "insecure" and does.
"""

import select
import socket

from umqtt import simple
from wattlock.errors import LinkError

_ROOM = 4400  # a message of 4,096 bytes with its topic and header
_FIRST_ROOM = 768  # the buffer grows when a longer packet is announced
_SEND_ROOM = 2048
_SMALL = 64
_KEEPALIVE_S = 30
_GREETING_MS = 10000
_FIRST_WAIT_MS = 4000
_LAST_WAIT_MS = 120000
_ERRORS = (
    OSError,
    ValueError,
    IndexError,
    AssertionError,
    TypeError,
    MemoryError,
    simple.MQTTException,
)

# states
_OFF = 0
_CONNECTING = 1
_GREETING = 2
_UP = 3


class _Parts:
    """A payload in pieces: umqtt only asks for its length and writes it."""

    def __init__(self, parts):
        self.parts = parts

    def __len__(self):
        return sum([len(part) for part in self.parts])


class _Pipe:
    """What umqtt.simple takes for a socket, and for the socket module that makes it. What is to be
    sent is gathered in a buffer that was made at the start, when the heap was in one piece."""

    def __init__(self):
        self.out = bytearray(_SEND_ROOM)
        self.waiting = 0  # bytes in it
        self.packet = b""  # what `read` gives
        self.at = 0

    # as the module
    def socket(self):
        return self

    def getaddrinfo(self, host, port):
        return ((None, None),)

    # as the socket
    def settimeout(self, s):
        pass

    def setblocking(self, yes):
        pass

    def connect(self, address):
        self.show(b"\x20\x02\0\0")  # as if connected already

    def close(self):
        pass

    def write(self, data, n=None):
        if isinstance(data, _Parts):
            for part in data.parts:
                self.write(part)
            return
        if isinstance(data, str):
            data = data.encode()
        begin = self.waiting
        end = begin + (len(data) if n is None else n)
        if end > len(self.out):
            self.out += bytearray(end - len(self.out))
        self.out[begin:end] = data if n is None else memoryview(data)[:n]
        self.waiting = end

    def read(self, n):
        if self.at + n > len(self.packet):
            raise LinkError("malformed MQTT packet")
        self.at += n
        part = self.packet[self.at - n : self.at]
        return part if n > _SMALL else bytes(part)  # a message is not copied

    def show(self, packet):
        self.packet = packet
        self.at = 0


class Mqtt:
    """The link to the gateway. `connected` tells whether `send` makes sense; `receive` gives
    (message, retained) or None."""

    def __init__(self, config, secrets, station_id, net, since, random):
        self._host = config["host"]
        self._port = config["port"]
        self._net = net
        self._since = since
        self._random = random
        self._topic = "wattlock/1/" + station_id + "/"
        self._pipe = _Pipe()
        simple.socket = self._pipe  # pyright: ignore[reportAttributeAccessIssue]
        login = secrets.get("mqtt", {})
        self._client = simple.MQTTClient(
            station_id,
            self._host,
            self._port,
            login.get("user"),
            login.get("password"),
            _KEEPALIVE_S,
        )
        self._client.set_callback(self._arrived)
        self._client.set_last_will(self._topic + "online", b"0", True)
        self._address = None
        self._sock = None
        self._poll = None
        self._state = _OFF
        self._began = 0  # ticks when this state began
        self._wait_ms = self._window_ms = 0
        self._rx = bytearray(_FIRST_ROOM)
        self._have = 0  # bytes in it
        self._taken = 0  # bytes of the packet that was dealt with, there or still to come
        self._box = None
        self._retained = False
        self._now = self._heard = self._pinged = 0  # ticks
        self.connected = False
        self.why = "not connected yet"
        self.bytes_out = self.bytes_in = 0

    def turn(self, ticks):
        """Bring the link up and keep it; raises LinkError when it is lost."""
        self._now = ticks
        self._net.turn(ticks)
        if self._state != _OFF and not self._net.up:
            raise LinkError("network lost: %s" % self._net.why)
        try:
            if self._state == _OFF:
                if self._net.up and self._waited():
                    self._connect(ticks)
            elif self._state == _CONNECTING:
                self._greet(ticks)
            else:
                self._flush()
                self._keep(ticks)
        except _ERRORS as e:
            raise LinkError("%s:%d: %r" % (self._host, self._port, e))

    def send(self, *parts):
        """Publish an up message: now as far as the socket takes it, then turn by turn."""
        self._client.publish(self._topic + "up", _Parts(parts))
        try:
            self._flush()
        except _ERRORS as e:
            raise LinkError("cannot send: %r" % e)

    def receive(self):
        """The next message that has come, as (bytes, retained), or None. It stands in the input
        buffer until the next call."""
        if self._state < _GREETING:
            return None
        try:
            self._fill()
            while self._packet():
                if self._box is not None:
                    message = self._box
                    self._box = None
                    return message, self._retained
                self._fill()
        except _ERRORS as e:
            raise LinkError("cannot read: %r" % e)
        return None

    def rebuild(self):
        """Throw the connection away; the next one is made after a pause, longer each time."""
        if self._sock is not None:
            try:
                self._sock.close()
            except _ERRORS:
                pass
        if self._state == _CONNECTING:
            self._address = None  # the name may mean another address by now
        self._sock = self._poll = None
        self._state = _OFF
        self._began = self._now
        # spread over the whole pause: all boards of a broker that restarts lose it together
        self._window_ms = min(max(self._window_ms * 2, _FIRST_WAIT_MS), _LAST_WAIT_MS)
        self._wait_ms = self._window_ms * (32 + self._random(1)[0]) // 256
        self._rx = bytearray(_FIRST_ROOM)
        self._have = self._taken = 0
        self._box = None
        self.connected = False

    def _enter(self, state, ticks):
        self._state = state
        self._began = ticks

    def _waited(self):
        return not self._wait_ms or self._since(self._began) >= self._wait_ms

    def _connect(self, ticks):
        if self._address is None:
            self._address = socket.getaddrinfo(self._host, self._port)[0][-1]
        self._sock = sock = socket.socket()
        self._enter(_CONNECTING, ticks)
        sock.setblocking(False)
        try:
            sock.connect(self._address)
        except OSError as e:
            if e.errno not in (115, 119):  # EINPROGRESS on Linux, on ESP32
                raise
        self._poll = select.poll()
        self._poll.register(sock, select.POLLOUT)

    def _greet(self, ticks):
        ready = self._poll.poll(0)
        if not ready:
            self._late()
            return
        if ready[0][1] & (select.POLLERR | select.POLLHUP):
            raise OSError("refused or unreachable")
        self._poll = None
        pipe = self._pipe
        pipe.waiting = 0
        client = self._client
        client.sock = None
        client.connect()
        # the packet id is made by umqtt; its answer is shown before it is asked
        id = (client.pid + 1) & 0xFFFF
        client.pid = id - 1
        pipe.show(bytes((0x90, 3, id >> 8, id & 255, 0)))
        client.subscribe(self._topic + "down")
        client.publish(self._topic + "online", b"1", True)
        self._enter(_GREETING, ticks)
        self._heard = self._pinged = ticks
        self._have = self._taken = 0
        self._flush()

    def _late(self):
        if self._since(self._began) > _GREETING_MS:
            raise OSError("no answer")

    def _keep(self, ticks):
        if self._state == _GREETING:
            self._late()
        elif self._since(self._heard) > _KEEPALIVE_S * 1500:
            raise OSError("silent")
        elif self._since(self._pinged) > _KEEPALIVE_S * 500:
            self._pinged = ticks
            self._client.ping()
            self._flush()

    def _flush(self):
        pipe = self._pipe
        if pipe.waiting:
            n = self._sock.write(memoryview(pipe.out)[: pipe.waiting])
            if n:
                self.bytes_out += n
                left = pipe.waiting - n
                if left:
                    pipe.out[:left] = pipe.out[n : pipe.waiting]
                pipe.waiting = left
        self.connected = self._state == _UP and not pipe.waiting

    def _fill(self):
        rx = self._rx
        n = min(self._taken, self._have)
        if n:
            self._taken -= n
            self._have -= n
            rx[: self._have] = rx[n : n + self._have]
        if not self._have and len(rx) > _FIRST_ROOM:
            rx = self._rx = bytearray(_FIRST_ROOM)  # a long packet has been dealt with
        if self._have == len(rx):
            return
        n = self._sock.readinto(memoryview(rx)[self._have :])
        if n is None:
            return
        if n == 0:
            raise OSError("closed by the broker")
        self.bytes_in += n
        self._have += n
        self._heard = self._now

    def _packet(self):
        """Take one whole packet off the input; False while there is none."""
        if self._taken:
            return False
        rx = self._rx
        size = 0
        for i in range(1, 5):
            if i >= self._have:
                return False
            size |= (rx[i] & 0x7F) << 7 * (i - 1)
            if not rx[i] & 0x80:
                break
        else:
            raise OSError("malformed MQTT length")
        end = i + 1 + size
        kind = rx[0] & 0xF0
        if end > _ROOM:
            if kind != 0x30:
                raise OSError("packet of %d bytes announced" % size)
            self._retained = bool(rx[0] & 1)
            self._box = b""
            self._taken = end  # most of it is still to come
            return True
        if end > self._have:
            if end > len(rx):
                self._rx = bytearray(end)
                self._rx[: self._have] = memoryview(rx)[: self._have]
            return False
        if kind == 0x30:
            self._retained = bool(rx[0] & 1)
            self._pipe.show(memoryview(rx)[:end])
            self._client.wait_msg()
        elif kind == 0x20 and rx[3]:
            raise OSError("the broker refuses us: code %d" % rx[3])
        elif kind == 0x90:
            if rx[4] == 0x80:
                raise OSError("the broker refuses the subscription")
            self._state = _UP
            self._wait_ms = self._window_ms = 0
            self.why = None
        self._taken = end
        return True

    def _arrived(self, topic, message):
        self._box = message
