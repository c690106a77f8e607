"""HTTP/1.1 for boards behind a network that lets nothing else out: POST up, the reply is down.

Why not `requests`, which the board's image brings: it connects, writes and reads in calls that
wait, so the loop would stand still for a slow gateway; it closes after each message (HTTP/1.0,
since July 2026 HTTP/1.1 with `Connection: close`), so each would pay for a TLS handshake, in bytes
and in seconds of an ESP32; it verifies no certificate; and it goes wherever a redirect sends it,
without its timeout. (micropython-lib, python-ecosys/requests, read as of August 2026.)
Fed step by step as umqtt is in `mqtt.py`, what would be left of it is the making of one line.

The connection below, plain or TLS, is `link.py`'s. It is made when there is something to say, kept
as long as the other end keeps it, and ended without fuss when it is idle. One request is on its
way at a time (`busy`). Whatever is not status 200 with a body of at most 4,096 bytes is refused
with a record that says which; a redirect is, too. The reply must come within 10 s.

Limits: the gateway cannot speak unasked: a command waits for the next message, at most `live_s`.
No proxies, no authentication but TLS's and the messages' own.
"""

from wattlock.errors import LinkError

from .link import Link, Outbox

_HEAD_ROOM = 1024
_BODY_ROOM = 4096
_REPLY_MS = 10000

# states of the link, as in link.py
_OFF = 0
_UP = 3


def _joined(data):
    """The body that came in chunks, or None while its end has not (RFC 9112, 7.1)."""
    body = b""
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(data[at:end].split(b";")[0], 16)
        at = end + size + 4
        if at > len(data):
            return None
        if not size:
            return body
        body += data[end + 2 : at - 2]


class Http(Link):
    def __init__(self, config, secrets, station_id, net, since, random):
        super().__init__(config, secrets, net, since, random, Outbox())
        host = self._host
        if self._port != (80 if config["insecure"] else 443):
            host += ":%d" % self._port
        self._head = (
            "POST %s/wattlock/1/%s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/octet-stream"
            "\r\nContent-Length: " % (config["path"], station_id, host)
        ).encode()
        self._asked = None  # ticks of the request that was not answered
        self._body = 0  # where the reply's body begins, 0: unknown yet
        self._size: int | None = 0  # bytes of it, None: in chunks
        self._ends = False  # the connection ends with it

    def turn(self, ticks, calm=True):
        super().turn(ticks, calm)
        self.connected = self._net.up and (self._state != _OFF or super()._due())

    def send(self, *parts):
        """POST an up message: now as far as the socket takes it, then turn by turn."""
        pipe = self._pipe
        pipe.write(self._head)
        pipe.write(b"%d\r\n\r\n" % sum([len(part) for part in parts]))
        for part in parts:
            pipe.write(part)
        self._asked = self._now
        self.busy = True
        if self._state == _UP:
            try:
                self._flush()
            except self.errors as e:
                raise self._error(e)

    def _due(self):
        return self._asked is not None and super()._due()

    def _greet(self, ticks):
        self._asked = ticks

    def _keep(self, ticks):
        if self._asked is not None and self._since(self._asked) > _REPLY_MS:
            raise OSError("no answer")

    def _close(self):
        super()._close()
        self._asked = None
        self._body = 0
        self.busy = False

    def _ended(self):
        if self._asked is not None:
            super()._ended()
        self._close()

    def _packet(self):
        if self._taken or not self._have:
            return False
        if self._asked is None:
            raise OSError("a reply to nothing")
        if not self._body and not self._headed():
            return False
        begin = self._body
        size = self._size
        message = None
        if size is None:
            data = _joined(bytes(memoryview(self._rx)[begin : self._have]))
            if data is not None:
                message = data if len(data) <= _BODY_ROOM else b""
            elif self._have - begin > _BODY_ROOM + 256:
                message = b""
            else:
                self._grow(begin + _BODY_ROOM + 300)
                return False
        elif size > _BODY_ROOM:
            message = b""
        elif begin + size <= self._have:
            message = memoryview(self._rx)[begin : begin + size]
        else:
            self._grow(begin + size)
            return False
        self._state = _UP
        self._wait_ms = self._window_ms = 0
        over = self._ends or size is None or size > _BODY_ROOM
        self._asked = None
        self._body = 0
        self.busy = False
        if over:  # of what was left unread, too
            self._close()
        else:
            self._taken = begin + (size or 0)
        if size != 0:
            self._box = message
        return True

    def _headed(self):
        """Is the reply's head there, and as it should be?"""
        data = bytes(memoryview(self._rx)[: self._have])
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if self._have >= _HEAD_ROOM:
                raise OSError("no HTTP")
            self._grow(_HEAD_ROOM)
            return False
        lines = data[:end].split(b"\r\n")
        status = lines[0].split(b" ")
        if not status[0].startswith(b"HTTP/1.") or len(status) < 2:
            raise OSError("no HTTP")
        code = int(status[1])
        if code != 200:
            raise LinkError("the gateway answers with HTTP %d" % code, "http_%d" % code)
        size = -1
        self._ends = status[0] == b"HTTP/1.0"
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            name = name.lower()
            value = value.strip().lower()
            if name == b"content-length":
                size = int(value)
            elif name == b"transfer-encoding":
                size = None
            elif name == b"connection":
                self._ends = value == b"close"
        if size == -1:
            raise OSError("a reply without a length")
        self._size = size
        self._body = end + 4
        return True
