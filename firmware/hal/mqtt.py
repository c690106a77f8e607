"""MQTT by umqtt.simple, which never gets to wait.

umqtt.simple writes and reads a socket as if it could wait for ever, and on an ESP32 it does: after
`setblocking(True)` nothing bounds it. So it never sees a socket. It is given a `_Pipe`: what it
writes is collected and leaves as one write per packet, as far as the socket takes it; what it
reads is a packet that has arrived whole and was measured first. The two answers it would wait for
(CONNACK, SUBACK) are shown to it as if they had come; the real ones are judged when they do.

The connection below, plain or TLS, is `link.py`'s.

A message that is longer than any of ours, or than the heap has room for, is read past and shown as
an empty one, for the caller to count; so a retained one cannot keep the link down.

A ping goes out when nothing was heard, or nothing said, for 90 s, and wants an answer within 15 s:
where there is traffic, there are no pings, and a path that swallows everything is noticed.

QoS is 0 both ways: the uplink has acknowledgements of its own. Nothing here is trusted; the
messages are authenticated above.
"""

from umqtt import simple
from wattlock.errors import LinkError

from .link import Link, Outbox

_ROOM = 4400  # a message of 4,096 bytes with its topic and header
_SMALL = 64
_KEEPALIVE_S = 120
_QUIET_MS = 90000
_PONG_MS = 15000

# states of the link, as in link.py
_GREETING = 2
_UP = 3


class _Parts:
    """A payload in pieces: umqtt only asks for its length and writes it."""

    def __init__(self, parts):
        self.parts = parts

    def __len__(self):
        return sum([len(part) for part in self.parts])


class _Pipe(Outbox):
    """What umqtt.simple takes for a socket, and for the socket module that makes it."""

    def __init__(self):
        super().__init__()
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
                Outbox.write(self, part)
        else:
            Outbox.write(self, data.encode() if isinstance(data, str) else data, n)

    def read(self, n):
        if self.at + n > len(self.packet):
            raise LinkError("malformed MQTT packet")
        self.at += n
        part = self.packet[self.at - n : self.at]
        return part if n > _SMALL else bytes(part)  # a message is not copied

    def show(self, packet):
        self.packet = packet
        self.at = 0


class Mqtt(Link):
    """The link to the gateway. `connected` tells whether `send` makes sense; `receive` gives
    (message, retained) or None."""

    def __init__(self, config, secrets, station_id, net, since, random):
        super().__init__(config, secrets, net, since, random, _Pipe())
        self._topic = "wattlock/1/" + station_id + "/"
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
        self._pinged = None  # ticks of the ping that was not answered

    def send(self, *parts):
        """Publish an up message: now as far as the socket takes it, then turn by turn."""
        self._client.publish(self._topic + "up", _Parts(parts))
        try:
            self._flush()
        except self.errors as e:
            raise self._error(e)

    def _greet(self, ticks):
        pipe = self._pipe
        client = self._client
        client.sock = None
        client.connect()
        # the packet id is made by umqtt; its answer is shown before it is asked
        id = client.pid % 0xFFFF + 1  # never 0 (MQTT 3.1.1, 2.3.1)
        client.pid = id - 1
        pipe.show(bytes((0x90, 3, id >> 8, id & 255, 0)))
        client.subscribe(self._topic + "down")
        client.publish(self._topic + "online", b"1", True)
        self._pinged = None

    def _keep(self, ticks):
        if self._state == _GREETING:
            self._late()
        elif self._pinged is not None:
            if self._since(self._pinged) > _PONG_MS:
                raise OSError("silent")
        elif self._since(self._heard) > _QUIET_MS or self._since(self._spoke) > _QUIET_MS:
            self._pinged = ticks
            self._client.ping()
            self._flush()

    def _flush(self):
        super()._flush()
        self.connected = self._state == _UP and not self._pipe.waiting

    def _fill(self):
        super()._fill()
        if self._heard == self._now:
            self._pinged = None

    def _packet(self):
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
        if end > _ROOM or not self._grow(end):
            if kind != 0x30:
                raise OSError("packet of %d bytes announced" % size)
            self._retained = bool(rx[0] & 1)
            self._box = b""
            self._taken = end  # most of it is still to come
            return True
        if end > self._have:
            return False
        if kind == 0x30:
            self._retained = bool(rx[0] & 1)
            self._pipe.show(memoryview(rx)[:end])
            self._client.wait_msg()
        elif kind == 0x20 and rx[3]:
            raise LinkError("the broker refuses us: code %d" % rx[3], "connack_%d" % rx[3])
        elif kind == 0x90:
            if rx[4] == 0x80:
                raise LinkError("the broker refuses the subscription", "suback")
            self._state = _UP
            self._wait_ms = self._window_ms = 0
        self._taken = end
        return True

    def _arrived(self, topic, message):
        self._box = message
