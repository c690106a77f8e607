"""The MQTT adapter against a scripted socket, packet by packet of MQTT 3.1.1.

Twice: with umqtt.simple 1.3.4, which the boards' images of today freeze, and with a client written
here that has the shape of newer ones (1.8): `connect` takes a timeout and sets it, `ssl` may be a
context. The socket behaves like an ESP32's that does not block: `write` may take part or nothing,
`readinto` gives None where nothing has come.
"""

from __future__ import annotations

import binascii
import errno
import importlib
import select
import struct
import sys
import types
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattlock.errors import LinkError

from tools import paths

CONNACK = b"\x20\x02\0\0"
PINGRESP = b"\xd0\0"
TOPIC = "wattlock/1/DEMO-1/"


def newer_client() -> types.ModuleType:
    """A client with the newer shape; what it writes is MQTT, in as many pieces as it likes."""
    module: Any = types.ModuleType("umqtt.simple")

    class MQTTException(Exception):
        pass

    class MQTTClient:
        def __init__(
            self, client_id, server, port=0, user=None, password=None, keepalive=0, ssl=None,
            ssl_params=None,
        ):  # fmt: skip
            self.name, self.server, self.port = client_id, server, port
            self.login, self.keepalive = (user, password), keepalive
            self.pid = 0
            self.sock: Any = None

        def set_callback(self, f):
            self.cb = f

        def set_last_will(self, topic, msg, retain=False, qos=0):
            self.will = topic, msg, retain

        def _text(self, value):
            value = value.encode() if isinstance(value, str) else value
            self.sock.write(struct.pack("!H", len(value)))
            self.sock.write(value)

        def connect(self, clean_session=True, timeout=None):
            self.sock = module.socket.socket()
            self.sock.settimeout(timeout)
            self.sock.connect(module.socket.getaddrinfo(self.server, self.port)[0][-1])
            user, password = self.login
            flags = clean_session << 1 | 4 | self.will[2] << 5 | (0xC0 if user else 0)
            rest = [self.name, self.will[0], self.will[1], *((user, password) if user else ())]
            size = 10 + sum(2 + len(part) for part in rest)
            assert size < 128
            self.sock.write(bytearray((0x10, size, 0, 0)), 2)
            self.sock.write(b"\0\4MQTT\4" + bytes([flags]) + struct.pack("!H", self.keepalive))
            for part in rest:
                self._text(part)
            answer = self.sock.read(4)
            assert answer[0] == 0x20 and answer[1] == 2
            if answer[3]:
                raise MQTTException(answer[3])
            return answer[2] & 1

        def ping(self):
            self.sock.write(b"\xc0\0")

        def publish(self, topic, msg, retain=False, qos=0):
            size, head = 2 + len(topic) + len(msg), bytearray([0x30 | qos << 1 | retain])
            while size > 127:
                head.append(size & 127 | 128)
                size >>= 7
            head.append(size)
            self.sock.write(head)
            self._text(topic)
            self.sock.write(msg)

        def subscribe(self, topic, qos=0):
            self.pid += 1
            self.sock.write(struct.pack("!BBH", 0x82, 5 + len(topic), self.pid))
            self._text(topic)
            self.sock.write(bytes([qos]))
            while self.wait_msg() != 0x90:
                pass
            answer = self.sock.read(4)
            assert answer[1:3] == struct.pack("!H", self.pid)
            if answer[3] == 0x80:
                raise MQTTException(answer[3])

        def wait_msg(self):
            first = self.sock.read(1)
            self.sock.setblocking(True)
            if first[0] & 0xF0 != 0x30:
                return first[0]
            size = shift = 0
            while True:
                (byte,) = self.sock.read(1)
                size |= (byte & 127) << shift
                shift += 7
                if not byte & 128:
                    break
            (length,) = struct.unpack("!H", self.sock.read(2))
            topic = self.sock.read(length)
            self.cb(topic, self.sock.read(size - length - 2))
            return first[0]

    module.MQTTClient, module.MQTTException = MQTTClient, MQTTException
    return module


def frozen_client() -> types.ModuleType:
    """umqtt.simple 1.3.4 as `make setup` fetched it, over CPython's modules."""
    source = paths.LIB / "umqtt" / "simple.py"
    assert source.exists(), f"{source}: not there; run `make setup`"
    own = {"usocket": types.ModuleType("usocket"), "ustruct": struct, "ubinascii": binascii}
    sys.modules.update(own)
    try:
        module = types.ModuleType("umqtt.simple")
        exec(compile(source.read_text(), str(source), "exec"), module.__dict__)
    finally:
        for name in own:
            del sys.modules[name]
    return module


class Socket:
    """The broker's end is `incoming` and `closed`; ours is recorded in `writes`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.incoming = bytearray()
        self.closed = False
        self.room: int | None = None  # bytes that a write takes, None: all
        self.writes: list[bytes] = []
        self.blocking = True

    def setblocking(self, yes: bool) -> None:
        self.blocking = yes

    def connect(self, address: Any) -> None:
        assert not self.blocking, "a connect that blocks"
        self.world.connects.append(address)
        if self.world.refuse is not None:
            raise OSError(self.world.refuse, "as told")
        raise OSError(self.world.in_progress, "in progress")

    def write(self, data: Any) -> int | None:
        assert not self.blocking
        if self.closed:
            raise OSError(errno.ECONNRESET, "reset")
        n = len(data) if self.room is None else min(self.room, len(data))
        if not n:
            return None
        self.writes.append(bytes(data[:n]))
        return n

    def readinto(self, buffer: Any) -> int | None:
        assert not self.blocking and len(buffer)
        if not self.incoming:
            return 0 if self.closed else None
        n = min(len(buffer), len(self.incoming), self.world.read_at_once)
        buffer[:n] = self.incoming[:n]
        del self.incoming[:n]
        return n

    def close(self) -> None:
        self.closed = True


def ticks_diff(a: int, b: int) -> int:
    """As a port has it: right for spans under 2^29 ms, six days."""
    return ((a - b + 2**29) & (2**30 - 1)) - 2**29


class Net:
    up = True
    lacks: str | None = None  # told at the next turn

    def turn(self, ticks: int) -> str | None:
        lacks, self.lacks = self.lacks, None
        return lacks


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, client: types.ModuleType) -> None:
        package: Any = types.ModuleType("umqtt")
        package.simple = client
        monkeypatch.setitem(sys.modules, "umqtt", package)
        monkeypatch.setitem(sys.modules, "umqtt.simple", client)
        monkeypatch.delitem(sys.modules, "hal.mqtt", raising=False)
        self.mqtt = importlib.import_module("hal.mqtt")
        link = importlib.import_module("hal.link")
        self.sockets: list[Socket] = []
        self.connects: list[Any] = []
        self.lookups = 0
        self.lookup_fails = False
        self.refuse: int | None = None
        self.in_progress = 115
        self.ready = True
        self.events = select.POLLOUT
        self.read_at_once = 10**6
        self.ms = 0
        self.net = Net()
        self.random = 0
        outer = self

        class FakePoll:
            def register(self, sock: Any, events: int) -> None:
                assert events == select.POLLOUT

            def poll(self, timeout: int) -> list[tuple[Any, int]]:
                assert timeout == 0, "a poll that waits"
                return [(None, outer.events)] if outer.ready else []

        def new_socket() -> Socket:
            self.sockets.append(Socket(self))
            return self.sockets[-1]

        def find(link: Any, host: str, net: Any, *_: Any) -> str:
            self.lookups += 1
            if self.lookup_fails:
                raise LinkError("no address", "dns_silent")
            return host

        def getaddrinfo(host: str, port: int) -> Any:
            return [(2, 1, 0, "", (host, port))]

        monkeypatch.setattr(importlib.import_module("hal.names"), "find", find)
        monkeypatch.setattr(
            link, "socket", types.SimpleNamespace(socket=new_socket, getaddrinfo=getaddrinfo)
        )
        fake = types.SimpleNamespace(
            poll=FakePoll, POLLOUT=select.POLLOUT, POLLERR=select.POLLERR, POLLHUP=select.POLLHUP
        )
        monkeypatch.setattr(link, "select", fake)

    def link(self, **secrets: Any) -> Any:
        return self.mqtt.Mqtt(
            {"host": "broker", "port": 1883, "insecure": True, "sntp": None},
            secrets,
            "DEMO-1",
            self.net,
            lambda ticks: ticks_diff(self.ms, ticks),
            lambda n: bytes([self.random] * n),
        )

    @property
    def socket(self) -> Socket:
        return self.sockets[-1]

    def run(self, link: Any, ms: int = 0) -> list[tuple[bytes, bool]]:
        """Turns of 100 ms, and what was received in them."""
        got = []
        end = self.ms + ms
        while True:
            link.turn(self.ms)
            while (came := link.receive()) is not None:
                got.append((bytes(came[0]), came[1]))
            if self.ms >= end:
                return got
            self.ms += 100

    def up(self, **secrets: Any) -> Any:
        """A link that is up."""
        link = self.link(**secrets)
        self.run(link, 200)
        self.socket.incoming += CONNACK + suback(self.socket)
        self.run(link, 100)
        assert link.connected
        self.socket.writes.clear()
        return link


@pytest.fixture(params=["1.3.4", "newer"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch, frozen_client() if request.param == "1.3.4" else newer_client())


def packets(data: bytes) -> list[tuple[int, bytes]]:
    """(first byte, body) of each MQTT packet (3.1.1, section 2.2)."""
    out = []
    while data:
        size = shift = 0
        for i in range(1, 5):
            size |= (data[i] & 127) << shift
            shift += 7
            if not data[i] & 128:
                break
        end = i + 1 + size
        assert len(data) >= end
        out.append((data[0], data[i + 1 : end]))
        data = data[end:]
    return out


def text(value: bytes) -> bytes:
    return struct.pack("!H", len(value)) + value


def suback(sock: Socket, code: int = 0) -> bytes:
    (body,) = [b for first, b in packets(b"".join(sock.writes)) if first == 0x82]
    return b"\x90\x03" + body[:2] + bytes([code])


def publish(message: bytes, retained: bool = False) -> bytes:
    body = text(TOPIC.encode() + b"down") + message
    size, head = len(body), bytearray([0x30 | retained])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes(head) + bytes([size]) + body


def lost(world: World, link: Any, ms: int = 0) -> str:
    with pytest.raises(LinkError) as caught:
        world.run(link, ms)
    link.rebuild()
    assert not link.connected and world.socket.closed
    return str(caught.value)


# Connecting ---------------------------------------------------------------------------------


def test_the_greeting_is_one_write_of_three_packets(world: World) -> None:
    link = world.link()
    world.run(link, 200)
    assert world.connects == [("broker", 1883)] and len(world.socket.writes) == 1
    connect, subscribe, online = packets(world.socket.writes[0])
    will = text(TOPIC.encode() + b"online") + text(b"0")
    # clean session, will with retain at QoS 0, keepalive 120 s
    assert connect == (0x10, text(b"MQTT") + b"\x04\x26\x00\x78" + text(b"DEMO-1") + will)
    assert subscribe[0] == 0x82 and subscribe[1][:2] != b"\0\0"
    assert subscribe[1][2:] == text(TOPIC.encode() + b"down") + b"\0"
    assert online == (0x31, text(TOPIC.encode() + b"online") + b"1")
    assert not link.connected  # nothing is believed before its answer
    world.socket.incoming += CONNACK
    world.run(link)
    assert not link.connected
    world.socket.incoming += suback(world.socket)
    world.run(link)
    world.run(link, 100)
    assert link.connected and link.why is None


def test_user_and_password(world: World) -> None:
    link = world.link(mqtt={"user": "demo", "password": "secret"})
    world.run(link, 200)
    ((_, body), *_) = packets(world.socket.writes[0])
    assert body[7] == 0xE6 and body.endswith(text(b"demo") + text(b"secret"))


def test_a_second_connection_greets_in_full(world: World) -> None:
    link = world.up()
    world.socket.closed = True
    lost(world, link, 100)
    world.run(link, 5000)
    assert len(world.sockets) == 2
    kinds = [first for first, _ in packets(b"".join(world.socket.writes))]
    assert kinds == [0x10, 0x82, 0x31]
    world.socket.incoming += CONNACK + suback(world.socket)
    world.run(link, 100)
    assert link.connected


@pytest.mark.parametrize("code", [115, 119])
def test_a_connect_in_progress_is_waited_for_without_waiting(world: World, code: int) -> None:
    world.ready, world.in_progress = False, code
    link = world.link()
    world.run(link, 5000)
    assert not world.socket.writes
    world.ready = True
    world.run(link, 100)
    assert world.socket.writes


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
def test_a_refused_connection(world: World, code: int) -> None:
    link = world.link()
    world.run(link, 200)
    world.socket.incoming += b"\x20\x02\0" + bytes([code])
    assert f"code {code}" in lost(world, link)


def test_a_refused_subscription(world: World) -> None:
    link = world.link()
    world.run(link, 200)
    world.socket.incoming += CONNACK + suback(world.socket, 0x80)
    assert "subscription" in lost(world, link)


@pytest.mark.parametrize("events", [select.POLLERR, select.POLLHUP, 4 | select.POLLHUP])
def test_nobody_listens(world: World, events: int) -> None:
    world.events = events
    assert "refused" in lost(world, world.link(), 200)


def test_a_connect_that_fails_at_once(world: World) -> None:
    world.refuse = errno.EHOSTUNREACH
    lost(world, world.link())


def test_a_name_that_cannot_be_looked_up(world: World) -> None:
    world.lookup_fails = True
    link = world.link()
    with pytest.raises(LinkError):
        world.run(link)
    link.rebuild()
    assert not world.sockets
    world.lookup_fails = False
    world.run(link, 3000)
    assert world.sockets


@pytest.mark.parametrize("silent", ["connect", "connack", "suback"])
def test_nobody_answers(world: World, silent: str) -> None:
    world.ready = silent != "connect"
    link = world.link()
    world.run(link, 200)
    if silent == "suback":
        world.socket.incoming += CONNACK
    world.run(link, 9000)
    assert "no answer" in lost(world, link, 2000)


def test_the_address_is_kept_while_it_works_and_asked_again_when_not(world: World) -> None:
    link = world.up()
    world.socket.closed = True
    lost(world, link, 100)
    world.run(link, 5000)
    assert world.lookups == 1
    world.ready = False
    lost(world, link, 20000)
    world.run(link, 10000)
    lost(world, link, 20000)
    world.run(link, 10000)
    assert world.lookups >= 2


@pytest.mark.parametrize("random", [0, 255])
def test_pauses_grow_to_two_minutes_and_begin_anew(world: World, random: int) -> None:
    world.refuse, world.random = errno.ECONNREFUSED, random
    link = world.link()
    pauses = []
    for _ in range(12):
        before = world.ms
        lost(world, link, 400000)
        pauses.append(world.ms - before)
    # windows of 4, 8, 16... 120 s, of which chance takes an eighth to nine eighths
    assert pauses[0] == 0
    windows = [4000, 8000, 16000, 32000, 64000, *[120000] * 6]
    for window, pause in zip(windows, pauses[1:], strict=True):
        wanted = window * (32 + random) // 256
        assert wanted <= pause <= wanted + 700
    world.refuse = None
    count = len(world.sockets)
    while len(world.sockets) == count:
        world.run(link, 100)
    world.run(link, 200)
    world.socket.incoming += CONNACK + suback(world.socket)
    world.run(link, 100)
    world.socket.closed = True
    lost(world, link, 100)
    count = len(world.sockets)
    world.run(link, 5200)
    assert len(world.sockets) == count + 1


def test_without_network_nothing_is_tried(world: World) -> None:
    world.net.up = False
    link = world.link()
    world.run(link, 60000)
    assert not world.sockets and world.lookups == 0
    world.net.lacks = "wifi_password"
    with pytest.raises(LinkError) as caught:
        world.run(link, 100)
    link.rebuild()
    assert caught.value.args[1] == link.why == "wifi_password"
    world.run(link, 60000)
    assert not world.sockets
    world.net.up = True
    world.run(link, 200)
    world.socket.incoming += CONNACK + suback(world.socket)
    world.run(link, 100)
    world.net.up = False
    assert "network lost" in lost(world, link)
    assert link.why == "network lost" and link.losses == 2


@pytest.mark.parametrize("days", [5, 7, 12, 13])
def test_days_without_network(world: World, days: int) -> None:
    """The pause after the loss is over long ago, whatever ticks tell of it."""
    link = world.up()
    world.net.up = False
    lost(world, link)
    for _ in range(days * 24):
        world.ms += 3600_000
        world.run(link)
    count = len(world.sockets)
    world.net.up = True
    world.run(link, 200)
    assert len(world.sockets) == count + 1


# Sending ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [66, 130, 4096])
def test_a_message_is_one_write(world: World, size: int) -> None:
    link = world.up()
    message = bytes(range(256)) * 16
    link.send(message[:size])
    (data,) = world.socket.writes
    # QoS 0, not retained
    assert packets(data) == [(0x30, text(TOPIC.encode() + b"up") + message[:size])]


@pytest.mark.parametrize("room", [1, 7, 1000])
def test_partial_writes(world: World, room: int) -> None:
    whole = World.up(world)
    whole.send(b"m" * 300)
    want = b"".join(world.socket.writes)
    world.socket.writes.clear()
    world.socket.room = 0
    whole.send(b"m" * 300)
    assert not whole.connected  # not before this one has left
    world.run(whole, 1000)
    assert not world.socket.writes and not whole.connected
    world.socket.room = room
    while not whole.connected:
        world.run(whole, 100)
    assert b"".join(world.socket.writes)[: len(want)] == want  # then perhaps a ping
    assert whole.bytes_out > len(want)


def test_a_socket_that_never_takes_what_is_sent_is_given_up(world: World) -> None:
    link = world.up()
    world.socket.room = 0
    link.send(b"m" * 300)
    assert not link.connected
    assert "silent" in lost(world, link, 120_000)


def test_a_socket_that_is_gone_while_sending(world: World) -> None:
    link = world.up()
    world.socket.closed = True
    with pytest.raises(LinkError):
        link.send(b"m" * 100)
    link.rebuild()
    assert not link.connected


@pytest.mark.parametrize("where", ["write", "readinto", "close"])
@pytest.mark.parametrize("error", [OSError(5), ValueError, IndexError, AssertionError, TypeError,
                                   MemoryError])  # fmt: skip
def test_whatever_a_stream_raises_ends_the_connection_and_the_next_one_is_whole(
    world: World, where: str, error: Any
) -> None:
    """What umqtt, a socket and a TLS stream are known to raise; closing may raise it as well."""
    link = world.up()
    broken = world.socket

    def raises(*_: Any) -> Any:
        raise error

    setattr(broken, where, raises)
    if where == "close":
        broken.closed = True
    with pytest.raises(LinkError):
        link.send(b"m" * 100)
        world.run(link, 100)
    link.rebuild()
    assert not link.connected and link.receive() is None
    world.run(link, 5000)
    assert world.socket is not broken
    world.socket.incoming += CONNACK + suback(world.socket) + publish(b"word")
    assert world.run(link, 200) == [(b"word", False)] and link.connected


# Receiving ----------------------------------------------------------------------------------


def test_messages_and_their_retained_bit(world: World) -> None:
    link = world.up()
    world.socket.incoming += publish(b"one") + publish(b"two", True) + publish(b"x" * 4096)
    assert world.run(link, 100) == [(b"one", False), (b"two", True), (b"x" * 4096, False)]


@pytest.mark.parametrize("piece", [1, 2, 3, 100, 767, 768, 769])
def test_messages_in_pieces(world: World, piece: int) -> None:
    link = world.up()
    world.read_at_once = piece
    sizes = (0, 1, 90, 700, 1500, 3, 4096)
    for size in sizes:
        world.socket.incoming += publish(b"%d " % size + b"x" * size)
    got: list[tuple[bytes, bool]] = []
    for _ in range(10000):
        got += world.run(link, 100)
        if len(got) == len(sizes):
            break
    assert got == [(b"%d " % size + b"x" * size, False) for size in sizes]


@pytest.mark.parametrize("piece", [1, 500, 10**6])
def test_a_message_that_is_too_long_is_read_past_and_shown_as_empty(
    world: World, piece: int
) -> None:
    """So a retained one cannot keep the link down; the caller counts it."""
    link = world.up()
    world.read_at_once = piece
    world.socket.incoming += publish(b"x" * 5000, True) + publish(b"after")
    got = []
    for _ in range(6000):
        got += world.run(link, 100)
        if len(got) == 2:
            break
    assert got == [(b"", True), (b"after", False)] and link.connected


def test_what_is_announced_is_no_reason_to_make_room(world: World) -> None:
    """Its length is looked at before its bytes are: 256 MB are read past in what there is."""
    link = world.up()
    room = len(link._rx)
    world.socket.incoming += b"\x30\xff\xff\xff\x7f" + b"x" * 20_000
    assert world.run(link, 5000) == [(b"", False)]
    assert len(link._rx) == room and link.connected and not world.socket.incoming


def test_any_other_packet_that_is_too_long_ends_the_link(world: World) -> None:
    link = world.up()
    world.socket.incoming += b"\x90\xff\xff\x7f"  # 2 MB announced, nothing of it here
    assert "2097151 bytes" in lost(world, link)


def test_a_length_without_end(world: World) -> None:
    link = world.up()
    world.socket.incoming += b"\x30\xff\xff\xff\xff\x01"
    assert "length" in lost(world, link)


def test_the_broker_hangs_up_between_and_within_packets(world: World) -> None:
    for data in (b"", publish(b"abc")[:-1], b"\x30", b"\x30\x80"):
        link = world.up()
        world.socket.incoming += data
        world.socket.closed = True
        assert "closed" in lost(world, link, 200)
        world.ms += 10000


@pytest.mark.parametrize("body", [b"", b"\0", b"\xff\xff", b"\0\x05abc"])
def test_a_malformed_publish(world: World, body: bytes) -> None:
    link = world.up()
    world.socket.incoming += b"\x30" + bytes([len(body)]) + body
    lost(world, link)


def test_pings_keep_it_and_silence_ends_it(world: World) -> None:
    link = world.up()
    for _ in range(20):
        world.run(link, 90200)
        assert packets(b"".join(world.socket.writes)) == [(0xC0, b"")]
        world.socket.writes.clear()
        world.socket.incoming += PINGRESP
    world.run(link, 90200)
    assert link.connected
    world.run(link, 12000)
    assert "silent" in lost(world, link, 5000)


def test_where_there_is_traffic_there_are_no_pings(world: World) -> None:
    link = world.up()
    for _ in range(60):
        link.send(b"m" * 100)
        world.socket.incoming += publish(b"answer")
        world.run(link, 60000)
    assert {first for first, _ in packets(b"".join(world.socket.writes))} == {0x30}


def test_one_who_only_speaks_or_only_hears_pings_all_the_same(world: World) -> None:
    """A broker counts what it hears (keepalive), a half-open path shows only what one hears."""
    link = world.up()
    for _ in range(3):
        link.send(b"m" * 100)
        world.run(link, 31000)
    assert (0xC0, b"") in packets(b"".join(world.socket.writes))
    world.socket.incoming += PINGRESP
    world.run(link, 100)
    world.socket.writes.clear()
    for _ in range(3):
        world.socket.incoming += publish(b"news")
        world.run(link, 31000)
    assert packets(b"".join(world.socket.writes)) == [(0xC0, b"")]
    assert link.connected


def test_no_connection_is_made_while_an_evse_stops(world: World) -> None:
    link = world.link()
    for _ in range(50):
        link.turn(world.ms, False)
        assert link.receive() is None
        world.ms += 100
    assert not world.sockets and not world.lookups
    world.run(link)
    assert world.sockets
    link.turn(world.ms, False)
    assert not world.socket.writes
    world.run(link, 100)
    world.socket.incoming += CONNACK + suback(world.socket)
    world.run(link, 100)
    link.send(b"m" * 100)  # one that stands goes on
    world.socket.incoming += publish(b"stop")
    world.socket.writes.clear()
    link.turn(world.ms, False)
    assert link.connected and bytes(link.receive()[0]) == b"stop"


# Whatever comes -----------------------------------------------------------------------------


@settings(deadline=None)
@given(
    data=st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([CONNACK, PINGRESP, publish(b"abc"), b"\x90\x03\0\x01\0", b"\x40\0"]),
        ),
        max_size=8,
    ),
    greeted=st.booleans(),
    at_once=st.integers(1, 50),
)
def test_any_bytes_give_messages_or_a_link_error(
    data: list[bytes], greeted: bool, at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(monkeypatch, frozen_client())
        link = world.up() if greeted else world.link()
        world.run(link, 200)
        world.read_at_once = at_once
        world.socket.incoming += b"".join(data)
        try:
            for message, retained in world.run(link, 1000):
                assert len(message) <= 4400 and retained in (True, False)
        except LinkError:
            link.rebuild()
            assert not link.connected
