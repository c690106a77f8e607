"""The MQTT adapter against real brokers: mosquitto with accounts and rules, and the embedded one.

`hal.mqtt` runs under CPython over real sockets that do not block; its ticks run ahead, so that no
pause between tries is waited for. Both shapes of umqtt.simple, as in `test_hal_mqtt`.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wattlock.errors import LinkError

from host_tests.gateway_kit import process
from host_tests.mosquitto_kit import GATEWAY, OBSERVER, Client, Mosquitto
from host_tests.test_hal_mqtt import frozen_client, newer_client

STATION = "DEMO-1"
ONLINE = f"wattlock/1/{STATION}/online"
DOWN = f"wattlock/1/{STATION}/down"


class Stream:
    """A socket with MicroPython's stream methods: None where CPython raises BlockingIOError."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self.fileno = self._socket.fileno
        self.setblocking = self._socket.setblocking
        self.connect = self._socket.connect
        self.close = self._socket.close

    def write(self, data: Any) -> int | None:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return None

    def readinto(self, buffer: Any) -> int | None:
        try:
            return self._socket.recv_into(buffer)
        except BlockingIOError:
            return None


class Net:
    up = True

    def turn(self, ticks: int) -> None:
        pass


class Board:
    """A link and whatever is said to it."""

    def __init__(self, port: int, login: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        link = importlib.import_module("hal.link")
        monkeypatch.setattr(
            link, "socket", types.SimpleNamespace(socket=Stream, getaddrinfo=socket.getaddrinfo)
        )
        self.ms = 0
        self.lost = 0
        self.heard: list[tuple[bytes, bool]] = []
        mqtt = importlib.import_module("hal.mqtt")
        self.link = mqtt.Mqtt(
            {"host": "127.0.0.1", "port": port, "insecure": True, "sntp": ""},
            {"mqtt": login} if login else {},
            STATION,
            Net(),
            lambda ticks: self.ms - ticks,
            lambda n: bytes(n),
        )

    def turn(self) -> None:
        self.ms += 20
        try:
            self.link.turn(self.ms)
            while (came := self.link.receive()) is not None:
                self.heard.append((bytes(came[0]), came[1]))
        except LinkError:
            self.lost += 1
            self.link.rebuild()

    def until(self, found: Callable[[], object], timeout_s: float = 20) -> None:
        end = time.monotonic() + timeout_s
        while not found():
            assert time.monotonic() < end, self.link.why
            self.turn()
            time.sleep(0.001)

    def up(self) -> None:
        self.until(lambda: self.link.connected)

    def vanish(self) -> None:
        """The connection ends as a cut of the power ends it: without MQTT's goodbye."""
        self.link.rebuild()


class Field:
    """A broker, the board at it, and others."""

    def __init__(self, port: int, board: Board, others: Callable[..., Client]) -> None:
        self.port = port
        self.board = board
        self.others = others

    def told(self, board: Board, message: bytes) -> None:
        """What the gateway publishes comes to the board."""
        before = len(board.heard)
        with contextlib.closing(self.others(GATEWAY)) as gateway:
            gateway.publish(DOWN, message)
            board.until(lambda: (message, False) in board.heard[before:])


def play(
    port: int, login: dict[str, str], others: Callable[..., Client],
    monkeypatch: pytest.MonkeyPatch, client: types.ModuleType,
) -> Field:  # fmt: skip
    package: Any = types.ModuleType("umqtt")
    package.simple = client
    monkeypatch.setitem(sys.modules, "umqtt", package)
    monkeypatch.setitem(sys.modules, "umqtt.simple", client)
    monkeypatch.delitem(sys.modules, "hal.mqtt", raising=False)
    return Field(port, Board(port, login, monkeypatch), others)


@pytest.fixture(params=["1.3.4", "newer"])
def client(request: pytest.FixtureRequest) -> types.ModuleType:
    return frozen_client() if request.param == "1.3.4" else newer_client()


@pytest.fixture
def broker(tmp_path: Path, mosquitto: Path) -> Iterator[Mosquitto]:
    with Mosquitto(mosquitto, tmp_path, STATION) as broker:
        yield broker


@pytest.fixture(params=["mosquitto", "embedded"])
def field(
    request: pytest.FixtureRequest, client: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Field]:
    if request.param == "mosquitto":
        broker = request.getfixturevalue("broker")
        yield play(
            broker.port, broker.login(STATION),
            lambda account, *topics: Client(broker, account, *topics), monkeypatch, client,
        )  # fmt: skip
        return
    with process("tools.broker", "--port", "0") as (_, ready):
        yield play(
            ready["port"], {},
            lambda account, *topics: Client(Anybody(ready["port"]), account, *topics),  # type: ignore[arg-type]
            monkeypatch, client,
        )  # fmt: skip


class Anybody:
    """A broker that wants no password, as `Client` knows one."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.passwords = {GATEWAY: "", OBSERVER: ""}


def last_word(field: Field, *wanted: bytes) -> None:
    """Whoever subscribes now is told this, as the retained word."""
    with contextlib.closing(field.others(OBSERVER, ONLINE)) as late:
        (heard,) = late.wait_for(1)[:1]
        assert heard.payload in wanted and heard.retain


def test_birth_and_last_will(field: Field) -> None:
    with contextlib.closing(field.others(OBSERVER, ONLINE)) as ear:
        for life in range(2):
            field.board.up()
            assert ear.wait_for(2 * life + 1)[-1].payload == b"1"
            last_word(field, b"1")
            field.board.vanish()
            assert ear.wait_for(2 * life + 2)[-1].payload == b"0"
            last_word(field, b"0")


def test_packet_ids_wrap_and_0_is_none(field: Field) -> None:
    """Each connection takes one; the 65,536th as the first."""
    field.board.up()
    field.board.link._client.pid = 65533
    seen = []
    for number in range(4):
        field.board.vanish()
        field.board.up()
        seen.append(field.board.link._client.pid)
        field.told(field.board, b"word %d" % number)
    assert seen == [65534, 65535, 1, 2] and field.board.lost == 0


def test_a_subscription_is_made_anew_on_every_connection(
    broker: Mosquitto, client: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker keeps nothing: it is killed, and comes back as if it had never been."""
    def others(account: str, *topics: str) -> Client:
        return Client(broker, account, *topics)

    field = play(broker.port, broker.login(STATION), others, monkeypatch, client)
    board = field.board
    board.up()
    field.told(board, b"before")
    for number in range(2):
        broker.kill()
        board.until(lambda: not board.link.connected)
        broker.start()
        board.up()
        field.told(board, b"after %d" % number)
    assert board.lost >= 2 and board.link.losses == board.lost


def test_a_retained_message_shows_its_bit(field: Field) -> None:
    with contextlib.closing(field.others(GATEWAY)) as gateway:
        gateway.publish(DOWN, b"old", retain=True)
        field.board.up()
        field.board.until(lambda: field.board.heard)
        assert field.board.heard == [(b"old", True)]
        gateway.publish(DOWN, b"", retain=True)
        field.told(field.board, b"new")
