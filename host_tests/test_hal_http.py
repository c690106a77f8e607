"""The HTTP adapter against a scripted socket: what it says, and what it takes for an answer."""

from __future__ import annotations

import select
import types
from typing import Any

import pytest
from hal import http, link
from wattlock.errors import LinkError

from host_tests.test_hal_mqtt import Net, Socket, ticks_diff

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sockets: list[Socket] = []
        self.connects: list[Any] = []
        self.refuse: int | None = None
        self.in_progress = 115
        self.read_at_once = 10**6
        self.ms = 0

        def new_socket() -> Socket:
            self.sockets.append(Socket(self))  # type: ignore[arg-type]
            return self.sockets[-1]

        poll = types.SimpleNamespace(
            register=lambda *_: None, poll=lambda ms: [(None, select.POLLOUT)]
        )
        monkeypatch.setattr(
            link,
            "socket",
            types.SimpleNamespace(
                socket=new_socket, getaddrinfo=lambda host, port: [(2, 1, 0, "", (host, port))]
            ),
        )
        monkeypatch.setattr(
            link,
            "select",
            types.SimpleNamespace(poll=lambda: poll, POLLOUT=4, POLLERR=8, POLLHUP=16),
        )
        config = {"host": "192.0.2.7", "port": 8020, "path": "/base", "insecure": True, "sntp": ""}
        self.net = Net()
        self.link = http.Http(
            config, {}, "DEMO-1", self.net, lambda t: ticks_diff(self.ms, t), bytes
        )

    def run(self, ms: int = 0) -> list[bytes]:
        got = []
        end = self.ms + ms
        while True:
            self.link.turn(self.ms)
            while (came := self.link.receive()) is not None:
                got.append(bytes(came[0]))
                assert came[1] is False
            if self.ms >= end:
                return got
            self.ms += 100

    def ask(self, reply: bytes, at_once: int = 10**6) -> list[bytes]:
        """A message up; the reply to it; what was received."""
        self.run()
        self.link.send(b"mes", b"sage")
        self.run(200)
        self.read_at_once = at_once
        self.sockets[-1].incoming += reply
        return self.run(100 * (len(reply) // at_once + 3))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_post_and_reply_and_the_connection_is_kept(world: World, at_once: int) -> None:
    assert world.ask(OK, at_once) == [b"hello"]
    head, _, body = b"".join(world.sockets[0].writes).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /base/wattlock/1/DEMO-1 HTTP/1.1" and body == b"message"
    assert set(lines[1:]) == {  # RFC 9112: Host always; the port where it is not the scheme's
        b"Host: 192.0.2.7:8020", b"Content-Length: 7", b"Content-Type: application/octet-stream"
    }  # fmt: skip
    assert world.link.connected and not world.link.busy
    assert world.ask(OK) == [b"hello"] and len(world.sockets) == 1


def test_nothing_is_connected_before_there_is_something_to_say(world: World) -> None:
    world.run(5000)
    assert not world.sockets and world.link.connected and not world.link.busy
    world.link.send(b"x")
    assert world.link.busy


@pytest.mark.parametrize("days", [5, 7, 12, 13])
def test_days_without_network(world: World, days: int) -> None:
    """The pause after the loss is over long ago, whatever ticks tell of it."""
    assert world.ask(OK) == [b"hello"]
    world.net.up = False
    with pytest.raises(LinkError, match="network lost"):
        world.run()
    world.link.rebuild()
    for _ in range(days * 24):
        world.ms += 3600_000
        world.run()
    assert not world.link.connected
    world.net.up = True
    world.run(200)
    assert world.link.connected
    assert world.ask(OK) == [b"hello"] and len(world.sockets) == 2


@pytest.mark.parametrize("reply", [
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=1\r\nlo\r\n0\r\n\r\n",
])  # fmt: skip
def test_a_connection_that_ends_with_the_reply(world: World, reply: bytes) -> None:
    assert world.ask(reply, 1) == [b"hello"]
    assert world.sockets[0].closed
    assert world.ask(OK) == [b"hello"] and len(world.sockets) == 2


def test_an_idle_connection_may_end_without_fuss(world: World) -> None:
    assert world.ask(OK) == [b"hello"]
    world.sockets[0].closed = True
    world.run(1000)
    assert world.link.connected
    assert world.ask(OK) == [b"hello"] and len(world.sockets) == 2


def test_no_news(world: World) -> None:
    assert world.ask(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") == []
    assert not world.link.busy


@pytest.mark.parametrize("reply", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 4097\r\n\r\n" + b"x" * 500,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2000\r\n" + b"x" * 4500,
])  # fmt: skip
def test_a_body_that_is_too_long_is_shown_as_empty_for_the_caller_to_count(
    world: World, reply: bytes
) -> None:
    assert world.ask(reply, 700) == [b""]
    assert world.sockets[0].closed and not world.link.busy


@pytest.mark.parametrize(("reply", "word"), [
    (b"HTTP/1.1 302 Found\r\nLocation: http://198.51.100.1/\r\n\r\n", "http_302"),
    (b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\n\r\n", "http_307"),
    (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", "http_403"),
    (b"HTTP/1.1 500 Oh\r\n\r\n", "http_500"),
    (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", None),
    (b"x" * 1100, None),
    (b"HTTP/1.1 200 OK\r\n\r\n", None),
    (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", None),
    (OK + OK, None),
])  # fmt: skip
def test_what_is_no_reply_ends_the_connection(world: World, reply: bytes, word: Any) -> None:
    with pytest.raises(LinkError) as caught:
        world.ask(reply)
    assert (*caught.value.args, None)[1] == word
    world.link.rebuild()
    assert not world.link.connected and world.sockets[0].closed and len(world.connects) == 1


@pytest.mark.parametrize("piece", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel"])
def test_a_reply_that_does_not_come_or_end(world: World, piece: bytes) -> None:
    world.ask(piece)
    with pytest.raises(LinkError, match="no answer"):
        world.run(11000)
    world.link.rebuild()
    assert not world.link.connected
    world.run(5200)
    assert world.link.connected  # after the pause


def test_the_other_end_hangs_up_in_the_middle(world: World) -> None:
    world.ask(b"HTTP/1.1 200 OK\r\n")
    world.sockets[0].closed = True
    with pytest.raises(LinkError, match="closed"):
        world.run(100)
