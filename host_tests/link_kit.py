"""A board and its link alone: firmware in the VM, the real gateway, and servers of every kind.

`Land` has a mosquitto with a listener for each certificate of `servers`, or an HTTPS server for
each over the gateway's own application, and a relay in front of them: to the board they are one
host and port, and `point` says who answers there. The meter's bus is not wired.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import uvicorn

from host_tests.gateway_kit import until
from host_tests.mosquitto_kit import GATEWAY, Mosquitto
from tools import build
from tools.certificates import DAY, Authority, Issued
from tools.gateway.app import KEEP_ALIVE_S, create_app
from tools.gateway.config import parse_config
from tools.relay import Relay
from tools.stage import STATION, gateway_config
from tools.virtual_board import image
from tools.virtual_board.client import VirtualBoard

os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

KEY = "5a" * 32
HOST = "localhost"
PLAIN = "plain"
CLIENT = "client"  # wants a client's certificate
RENEWED = "renewed"  # and knows the board's first one as revoked
T = TypeVar("T")
Fields = dict[str, Any]


class Certificates:
    """One CA, servers right and wrong, and clients."""

    def __init__(self) -> None:
        self.ca = Authority()
        self.stranger = Authority("somebody else's CA")
        good = self.ca.issue(HOST, "127.0.0.1")
        self.servers: dict[str, Issued] = {
            "good": good,
            "tls_untrusted": self.stranger.issue(HOST),
            "tls_host": self.ca.issue("example.org"),
            "tls_expired": self.ca.issue(HOST, begins=-30 * DAY, lasts=10 * DAY),
            "tls_not_yet_valid": self.ca.issue(HOST, begins=10 * DAY),
            CLIENT: good,
            RENEWED: good,
        }
        self.client = self.ca.issue()
        self.renewed = self.ca.issue(key=self.client.key)
        self.revoked = self.ca.revoking(self.client)
        self.wrong_client = self.stranger.issue()

    def secrets(self, client: Issued | None = None, at_s: int | None = None) -> Fields:
        """As secrets.json has them."""
        found: Fields = {"ca": self.ca.issued.der}
        found["at_s"] = int(time.time()) if at_s is None else at_s
        if client is not None:
            found |= {"cert": client.der, "key": client.key_der}
        return found


class Web:
    """The gateway in a thread: one event loop, a listener for each of `contexts`."""

    def __init__(
        self, config: Fields, servers: dict[str, list[Path] | None], ca: Path, revoked: Path
    ) -> None:  # fmt: skip
        app = create_app(parse_config(config), "http://127.0.0.1")
        self.context = app.state.context
        self.store = self.context.store
        self._servers = []
        self._sockets = []
        self.ports: dict[str, int] = {}
        for name, files in servers.items():
            options: Fields = {"lifespan": "on" if name == PLAIN else "off"}
            if files is not None:
                options |= {"ssl_certfile": str(files[0]), "ssl_keyfile": str(files[1])}
                if name in (CLIENT, RENEWED):
                    options |= {"ssl_ca_certs": str(ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
            settings = uvicorn.Config(
                app, log_level="critical", access_log=False, timeout_graceful_shutdown=1,
                timeout_keep_alive=KEEP_ALIVE_S, **options,
            )  # fmt: skip
            if name == RENEWED and files is not None:
                settings.load()
                assert settings.ssl
                settings.ssl.load_verify_locations(revoked)
                settings.ssl.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
            server = uvicorn.Server(settings)
            listener = socket.create_server(("127.0.0.1", 0))
            self.ports[name] = listener.getsockname()[1]
            self._servers.append(server)
            self._sockets.append(listener)
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), daemon=True)
        self._thread.start()
        until(lambda: all(server.started for server in self._servers))

    async def _run(self) -> None:
        await asyncio.gather(
            *(
                server.serve(sockets=[listener])
                for server, listener in zip(self._servers, self._sockets, strict=True)
            )
        )

    def stop(self) -> None:
        for server in self._servers:
            server.should_exit = True
        self._thread.join(15)
        assert not self._thread.is_alive()


class Land:
    def __init__(
        self, kind: str, folder: Path, certificates: Certificates, mosquitto: Path | None = None,
        heap: str = "112k", **config: Any,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.certificates = certificates
        self.relay = Relay()
        self._folder = folder
        self._parts: list[Any] = []
        self._heap = heap
        self._config = config
        self._mosquitto = mosquitto
        self.starts = 0  # of the firmware

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for part in reversed(self._parts):
            part.stop()

    def _start(self) -> None:
        self._parts.append(self.relay)
        folder = self._folder
        known = self.certificates
        ca, _ = known.ca.issued.write(folder / "tls", "ca")
        revoked = folder / "tls" / "revoked.crl"
        revoked.write_text(known.revoked)
        files = {
            name: list(issued.write(folder / "tls", name))
            for name, issued in known.servers.items()
        }
        self.login: Fields = {}
        site = gateway_config(folder, 1, KEY)
        servers: dict[str, list[Path] | None] = {PLAIN: None}
        if self.kind == "mqtt":
            assert self._mosquitto
            listen: dict[str, list[str]] = {}
            for name, (certificate, key) in files.items():
                listen[name] = [f"certfile {certificate}", f"keyfile {key}"]
                if name in (CLIENT, RENEWED):
                    listen[name] += [f"cafile {ca}", "require_certificate true"]
                if name == RENEWED:
                    listen[name].append(f"crlfile {revoked}")
            broker = Mosquitto(self._mosquitto, folder / "broker", STATION, listen=listen)
            self._parts.append(broker.start())
            self.broker = broker
            self.ports = {**broker.ports, PLAIN: broker.port}
            self.login = broker.login(STATION)
            site["mqtt"] = {
                "host": "127.0.0.1", "port": broker.port, "tls": False, "username": GATEWAY,
                "password": broker.passwords[GATEWAY],
            }  # fmt: skip
        else:
            del site["mqtt"]
            servers |= files
        self.web = Web(site, servers, ca, revoked)
        self._parts.append(self.web)
        if self.kind == "http":
            self.ports = self.web.ports
        self.board = VirtualBoard(
            state=folder / "board", files={"/boot.py": b""}, heap=self._heap
        ).start()
        self._parts.append(self.board)

    # --- the board

    def provision(self, tls: Fields | None, **link: Any) -> None:
        """The firmware, a configuration and secrets onto the board, which is without power
        meanwhile. `tls` None: a plain link."""
        self.board.power_off()
        self.starts += 1
        plain = tls is None
        if self.kind == "mqtt":
            way: Fields = {"kind": "mqtt", "host": HOST, "port": self.relay.port}
        else:
            scheme = "http" if plain else "https"
            way = {"kind": "http", "url": f"{scheme}://{HOST}:{self.relay.port}"}
        if plain:
            way["insecure"] = True
        config = {
            "station_id": STATION,
            "board": "virtual",
            "link": way | link,
            "buses": {"rs485": {"kind": "rtu", "uart": 1}},
            "evses": [
                {"n": 1, "meter": "eastron_sdm630_v2", "bus": "rs485", "max_a": 32,
                 "require_meter": False}
            ],
            "live_s": 1,
        } | self._config  # fmt: skip
        secrets: Fields = {"kid": 1, "key": KEY, "wifi": {"ssid": "x", "password": "xxxxxxxx"}}
        if self.login:
            secrets["mqtt"] = self.login
        if tls is not None:
            secrets["tls"] = tls
        files = build.build("virtual", config).files("a") | {"/slot": b"a"}
        files["/config.json"] = json.dumps(config).encode()
        files["/secrets.json"] = json.dumps(secrets).encode()
        image.write_files(self.board.flash, files)

    def point(self, name: str) -> None:
        """Whoever answers at the board's host and port from now on."""
        self.relay.point(self.ports[name])

    def aim(self, name: str) -> None:
        """As `point`, and what goes through now goes on: nothing looks like a network's fault."""
        self.relay.target = self.ports[name]

    def hurrying(self, found: Callable[[], T], step_ms: int = 1000, timeout_s: float = 40) -> T:
        """`found`, while the board's time is hurried on: pauses between tries grow."""
        end = time.monotonic() + timeout_s
        while not (value := found()):
            assert time.monotonic() < end, self.board.console()[-3000:]
            time.sleep(0.1)
            self.board.advance(step_ms)
        return value

    def console(self) -> str:
        return self.board.console()

    # --- the gateway

    def records(self, **wanted: Any) -> list[Fields]:
        """Bodies at the gateway with these fields, in order."""
        from sqlalchemy import select

        from tools.gateway.store import Record

        with self.web.store() as db:
            rows = db.execute(select(Record.body).order_by(Record.id)).scalars().all()
        bodies = [json.loads(row) for row in rows]
        return [b for b in bodies if all(b.get(k) == v for k, v in wanted.items())]

    def station(self) -> Any:
        from tools.gateway.store import Station

        with self.web.store() as db:
            return db.get_one(Station, STATION)

    def told(self) -> bool:
        """Has the gateway the boot record of this start of the firmware?"""
        return bool(self.records(t="boot", boot=self.starts))
