"""Servers on loopback for the tests of gateway and eMSP, and a scripted OCPI receiver."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response

from host_tests.uplink_peer import KEY, Board, Link, talk
from tools.gateway.app import create_app
from tools.gateway.authorize import Cards
from tools.gateway.bookings import Bookings
from tools.gateway.catalog import Catalog
from tools.gateway.config import parse_config
from tools.gateway.desk import Desk
from tools.gateway.southbound import Southbound
from tools.gateway.store import Command, open_store

# Nothing here leaves this machine, whatever proxy its environment names.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

ADMIN = "admin-token-for-tests"
TOKEN_A = "registration-token-1"
T = TypeVar("T")


def until(found: Callable[[], T], deadline_s: float = 15.0) -> T:
    """The first true value of `found`, polled; AssertionError after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        value = found()
        if value:
            return value
        assert time.monotonic() < end, f"not within {deadline_s} s"
        time.sleep(0.02)


class Clock:
    """The gateway's clock in the hands of a test."""

    def __init__(self, unix_ms: int = 1_790_000_000_000) -> None:
        self.unix_ms = unix_ms

    def __call__(self) -> int:
        return self.unix_ms

    def advance(self, ms: int) -> None:
        self.unix_ms += ms


class Bare:
    """The southbound side alone, no sockets: a function from bytes to bytes."""

    def __init__(self, folder: Path, clock: Clock | None = None, **changes: Any) -> None:
        self.clock = clock or Clock()
        self.config = parse_config(config_of(folder, **changes))
        self.store = open_store(self.config.database)
        self.catalog = Catalog(self.config)
        with self.store.begin() as db:
            self.catalog.install(db, self.clock())
        self.desk = Desk(self.catalog)
        bookings = Bookings(self.config, self.catalog, self.desk)
        cards = Cards(self.store, self.catalog, None, self.clock)
        self.south = Southbound(self.store, self.catalog, self.desk, bookings, cards, self.clock)
        self.pushed: list[tuple[str, bytes]] = []
        self.south.publish = self._publish

    def _publish(self, station_id: str, raw: bytes) -> bool:
        self.pushed.append((station_id, raw))
        return True

    def up(
        self, board: Board, raw: bytes | None = None, link: str = "http"
    ) -> dict[str, Any] | None:
        """One message; the header of the answer as the board takes it."""
        reply = self.south.handle(board.station_id, raw or board.message(), link)
        return board.receive(reply) if reply else None

    def all(self, board: Board) -> None:
        for _ in range(50):
            if board.acked == len(board.records):
                return
            assert self.up(board) is not None
        raise AssertionError("never acknowledged")

    def rows(self, table: Any) -> list[Any]:
        with self.store() as db:
            return list(db.query(table).all())

    def refused(self, station_id: str = "DEMO-1") -> dict[str, int]:
        return dict(self.south.refused.get(station_id, {}))

    def queue(self, type: str, data: dict[str, Any]) -> Command:
        with self.store.begin() as db:
            return self.desk.queue(db, "DEMO-1", type, data, self.clock())


class Server:
    """An ASGI app on a loopback port in a thread of its own."""

    def __init__(self, make: Callable[[str], Any], port: int = 0) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = make(self.url)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.app, log_level="warning", access_log=False, timeout_graceful_shutdown=2
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        until(lambda: self._server.started)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(15)
        assert not self._thread.is_alive()
        self._socket.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def config_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """A gateway's configuration with one location, two EVSEs on two boards."""

    def evse(uid: str, station_id: str) -> dict[str, Any]:
        return {
            "uid": uid,
            "evse_id": f"BE*BEC*{uid}",
            "capabilities": ["RESERVABLE", "REMOTE_START_STOP_CAPABLE", "RFID_READER"],
            "connectors": [
                {
                    "id": "1",
                    "standard": "IEC_62196_T2",
                    "format": "SOCKET",
                    "power_type": "AC_3_PHASE",
                    "max_voltage": 230,
                    "max_amperage": 32,
                }
            ],
            "board": {"station_id": station_id, "evse": 1},
        }

    config = {
        "party": {"country_code": "BE", "party_id": "BEC", "name": "BeCharged"},
        "port": 0,
        "database": f"sqlite:///{folder}/gateway.sqlite3",
        "stations": {"DEMO-1": {"kid": 1, "key": KEY}, "DEMO-2": {"kid": 1, "key": "ab" * 32}},
        "locations": [
            {
                "id": "LOC1",
                "publish": True,
                "name": "Gent Zuid",
                "address": "F.Rooseveltlaan 3A",
                "city": "Gent",
                "postal_code": "9000",
                "country": "BEL",
                "coordinates": {"latitude": "51.047599", "longitude": "3.729944"},
                "time_zone": "Europe/Brussels",
                "evses": [evse("E1", "DEMO-1"), evse("E2", "DEMO-2")],
            }
        ],
        "registration_tokens": [TOKEN_A, "registration-token-2"],
        "admin_token": ADMIN,
        "command_timeout_s": 20,
        "retry_first_s": 0.02,
        "retry_max_s": 0.1,
        "log_level": "warning",
    }
    return config | changes


class Gateway(Server):
    """The gateway in this process, on a clock of the test's."""

    def __init__(self, folder: Path, clock: Clock | None = None, port: int = 0, **changes: Any):
        self.clock = clock or Clock()
        config = parse_config(config_of(folder, **changes))
        super().__init__(lambda url: create_app(config, url, now_ms=self.clock), port)

    @property
    def context(self) -> Any:
        return self.app.state.context

    @property
    def versions_url(self) -> str:
        return f"{self.url}/ocpi/versions"

    def admin(self, path: str) -> Any:
        reply = httpx.get(f"{self.url}/admin/{path}", headers={"Authorization": f"Bearer {ADMIN}"})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def station(self, station_id: str = "DEMO-1") -> dict[str, Any]:
        found: dict[str, Any] = self.admin("stations")["stations"][station_id]
        return found

    def idle(self) -> bool:
        """Nothing is left to be sent."""
        return self.admin("outbox") == []

    def link(self, board: Board) -> Link:
        def send(raw: bytes) -> bytes | None:
            reply = httpx.post(f"{self.url}/wattlock/1/{board.station_id}", content=raw)
            return reply.content if reply.status_code == 200 else None

        return send

    def talk(self, board: Board) -> None:
        self.clock.unix_ms = max(self.clock.unix_ms, board.unix_ms)
        talk(board, self.link(board))


class Client:
    """An OCPI client by hand: one platform's token, requests, envelopes."""

    def __init__(self, base_url: str, token: str) -> None:
        self.base_url = base_url
        self.token = token

    def raw(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        url = path if path.startswith("http") else f"{self.base_url}/ocpi/2.2.1/{path}"
        sent = {
            "Authorization": "Token " + base64.b64encode(self.token.encode()).decode(),
            "X-Request-ID": str(uuid.uuid4()),
            "X-Correlation-ID": str(uuid.uuid4()),
        }
        if body is not None:
            content = json.dumps(body).encode()
        return httpx.request(
            method, url, content=content, headers=sent | (headers or {}), timeout=15
        )

    def ask(self, method: str, path: str, body: Any = None, **kw: Any) -> tuple[int, int, Any]:
        """(HTTP status, OCPI status_code, data); the envelope must be one."""
        reply = self.raw(method, path, body, **kw)
        envelope = reply.json()
        assert set(envelope) <= {"data", "status_code", "status_message", "timestamp"}, envelope
        assert isinstance(envelope["timestamp"], str) and len(envelope["timestamp"]) <= 25
        return reply.status_code, envelope["status_code"], envelope.get("data")


class FakeEmsp(Server):
    """An eMSP that registers by hand, records every push and answers as the test scripts it."""

    def __init__(self, port: int = 0, party_id: str = "EMS", country_code: str = "NL") -> None:
        self.party_id, self.country_code = party_id, country_code
        self.token_b = "token-b-" + party_id
        self.received: list[tuple[str, str, Any]] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.objects: dict[str, Any] = {}
        self.script: list[Callable[[str, str], Response | None]] = []
        self.modules = ["sessions", "locations", "cdrs"]
        self.senders: list[str] = []
        self.versions: Any = None
        super().__init__(self._make, port)

    def _make(self, url: str) -> FastAPI:
        app = FastAPI()

        @app.api_route("/{path:path}", methods=["GET", "PUT", "PATCH", "POST"])
        async def anything(request: Request, path: str) -> Response:
            body = await request.body()
            shown = request.headers.get("authorization", "")
            if shown != "Token " + base64.b64encode(self.token_b.encode()).decode():
                return _reply(None, 2001, 401)
            if path == "versions":
                known = [{"version": "2.2.1", "url": f"{url}/2.2.1"}]
                return _reply(known if self.versions is None else self.versions)
            if path == "2.2.1":
                endpoints = [
                    {"identifier": name, "role": "RECEIVER", "url": f"{url}/{name}"}
                    for name in self.modules
                ] + [
                    {"identifier": name, "role": "SENDER", "url": f"{url}/{name}"}
                    for name in self.senders
                ]
                return _reply({"version": "2.2.1", "endpoints": endpoints})
            self.received.append((request.method, path, json.loads(body) if body else None))
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            while self.script:
                answer = self.script[0](request.method, path)
                if answer is None:
                    break
                self.script.pop(0)
                return answer
            return self._store(request.method, path, json.loads(body) if body else None)

        return app

    def _store(self, method: str, path: str, body: Any) -> Response:
        if method == "GET":
            known = self.objects.get(path)
            return _reply(known) if known is not None else _reply(None, 2000, 404)
        if method == "PATCH" and path in self.objects:
            periods = self.objects[path].get("charging_periods", [])
            new = body.pop("charging_periods", [])
            self.objects[path] |= body
            self.objects[path]["charging_periods"] = periods + new
        elif method == "PATCH" and not path.startswith("locations"):
            return _reply(None, 2000, 404)
        elif method == "PUT":
            self.objects[path] = body
        return _reply(None)

    def fail(self, method: str, prefix: str, http: int = 500, *, after: bool = False) -> None:
        """The next `method` on `prefix` fails; with `after`, it was applied all the same."""

        def answer(asked: str, path: str) -> Response | None:
            if asked != method or not path.startswith(prefix):
                return None
            if after:
                self._store(asked, path, json.loads(self.bodies[-1] or b"null"))
            return Response("broken", status_code=http)

        self.script.append(answer)

    def credentials(self) -> dict[str, Any]:
        role = {
            "role": "EMSP",
            "business_details": {"name": "Fake"},
            "party_id": self.party_id,
            "country_code": self.country_code,
        }
        return {"token": self.token_b, "url": f"{self.url}/versions", "roles": [role]}

    def register(self, gateway: Gateway, token_a: str = TOKEN_A) -> Client:
        client = Client(gateway.url, token_a)
        http, code, data = client.ask("POST", "credentials", self.credentials())
        assert (http, code) == (200, 1000), data
        return Client(gateway.url, data["token"])

    def pushes(self, method: str, prefix: str) -> list[Any]:
        return [b for m, path, b in self.received if m == method and path.startswith(prefix)]


def _reply(data: Any, code: int = 1000, http: int = 200) -> Response:
    body = {"data": data, "status_code": code, "timestamp": "2026-01-01T00:00:00Z"}
    return Response(json.dumps(body), status_code=http, media_type="application/json")


def token(uid: str = "04A1B2C3D4E580", party_id: str = "EMS", **changes: Any) -> dict[str, Any]:
    """An OCPI Token."""
    return {
        "country_code": "NL",
        "party_id": party_id,
        "uid": uid,
        "type": "RFID",
        "contract_id": "NL-EMS-C00000001-A",
        "issuer": "Demo",
        "valid": True,
        "whitelist": "ALLOWED",
        "last_updated": "2026-01-01T00:00:00Z",
    } | changes


def board_token(uid: str = "04A1B2C3D4E580", party_id: str = "EMS") -> dict[str, Any]:
    return {"country_code": "NL", "party_id": party_id, "type": "RFID", "uid": uid}


@contextmanager
def process(*args: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """``python -m ARGS``, its ready line, and its end."""
    root = Path(__file__).resolve().parent.parent
    child = subprocess.Popen(
        [sys.executable, "-m", *args], cwd=root, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line, f"{args[0]} ended before it was ready"
        yield child, json.loads(line)
    finally:
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        assert child.stdout is not None
        child.stdout.close()
