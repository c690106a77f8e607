"""Every part of the house on one laptop: broker, gateway, eMSP, meter, car and board.

Purpose: the demo and the scenarios play on the same stage. Each part is the real program in a
process of its own, on loopback with ports of its own, and ends with the `with` block.

    with Stage(folder) as stage:
        stage.deploy()                       # or stage.install(), which does not go over the pty
        stage.plug("C")
        stage.show(ALICE)

What is simulated is the world: `plug` puts a vehicle in and makes it ask for energy, and the
meter's load follows the contactor that the board drives.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from tools import build, paths
from tools.virtual_board.client import VirtualBoard

STATION = "DEMO-1"
EVSE = "WATT-E1"
LOCATION = "WATT-HQ"
METER = "eastron_sdm630_v2"
CAR_W = 21_000  # 3 x 30 A: below the 32 A of the connection
DRIVERS = {
    "alice": {"uid": "04A1B2C3D4E580", "type": "RFID", "contract_id": "NL-EMS-C00000001-A"},
    "bob": {"uid": "04B0B0B0B0B080", "type": "RFID", "contract_id": "NL-EMS-C00000002-B"},
    "carol": {"uid": "04CA0CA0CA0C80", "type": "RFID", "contract_id": "NL-EMS-C00000003-C"},
}
T = TypeVar("T")


class StageError(Exception):
    """A part did not come up, or what was waited for did not happen."""


def until(what: str, found: Callable[[], T | None], timeout_s: float = 20.0) -> T:
    """The first true value of `found`; StageError names `what` after the deadline."""
    end = time.monotonic() + timeout_s
    while True:
        value = found()
        if value:
            return value
        if time.monotonic() > end:
            raise StageError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.05)


class Part:
    """`python -m ARGS` that says in one JSON line when it is ready."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.name = args[0].removeprefix("tools.")
        self._log = (folder / f"{self.name}.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", *args],
            cwd=paths.ROOT,
            stdout=subprocess.PIPE,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
        )
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise StageError(f"{self.name} did not start; see {folder}/{self.name}.log")
        self.ready: dict[str, Any] = json.loads(line)

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        assert self._process.stdout
        self._process.stdout.close()
        self._log.close()


class Meter:
    """The simulated meter's control port."""

    def __init__(self, control: str) -> None:
        host, _, port = control.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._file = self._socket.makefile("rb")
        self._lock = threading.Lock()

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        with self._lock:
            self._socket.sendall(json.dumps({"do": do, **fields}).encode() + b"\n")
            answer = json.loads(self._file.readline())
        if not answer["ok"]:
            raise StageError(f"meter: {answer['error']}")
        return answer

    def wh(self) -> int:
        """What the register shows."""
        return self.ask("get")["wh"]

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def simulate(evse: dict[str, Any], pty: Path) -> list[str]:
    """The part that plays this EVSE's Modbus meter on a serial line; where it has none, METER."""
    meter = evse["meter"] if evse.get("meter") in build.meters() else METER
    return [
        *("tools.meter", "simulate", "--meter", meter, "--unit", str(evse.get("unit", 1))),
        *("--pty", str(pty), "--control", "127.0.0.1:0", "--start-wh", "1234567"),
    ]


def gateway_config(folder: Path, mqtt_port: int, key: str, **changes: Any) -> dict[str, Any]:
    """A CPO with one place, one EVSE, one price."""
    connector = {
        "id": "1",
        "standard": "IEC_62196_T2",
        "format": "SOCKET",
        "power_type": "AC_3_PHASE",
        "max_voltage": 230,
        "max_amperage": 32,
        "tariff_ids": ["KWH"],
    }
    evse = {
        "uid": EVSE,
        "evse_id": "NL*WLK*E1",
        "capabilities": ["RESERVABLE", "REMOTE_START_STOP_CAPABLE", "RFID_READER"],
        "connectors": [connector],
        "board": {"station_id": STATION, "evse": 1},
    }
    price = {"type": "ENERGY", "price": 0.35, "vat": 21, "step_size": 1}
    config = {
        "party": {"country_code": "NL", "party_id": "WLK", "name": "Wattlock demo CPO"},
        "port": 0,
        "database": f"sqlite:///{folder}/gateway.sqlite3",
        "mqtt": {"host": "127.0.0.1", "port": mqtt_port, "tls": False},
        "stations": {STATION: {"kid": 1, "key": key}},
        "locations": [
            {
                "id": LOCATION,
                "publish": True,
                "name": "Wattlock demo",
                "address": "Voltastraat 1",
                "city": "Delft",
                "postal_code": "2600 AA",
                "country": "NLD",
                "coordinates": {"latitude": "52.011600", "longitude": "4.357100"},
                "time_zone": "Europe/Amsterdam",
                "evses": [evse],
            }
        ],
        "tariffs": [
            {"id": "KWH", "currency": "EUR", "elements": [{"price_components": [price]}]}
        ],
        "registration_tokens": ["demo-registration-token"],
        "admin_token": "demo-admin-token",
        "command_timeout_s": 20,
        "retry_first_s": 0.2,
        "retry_max_s": 2,
        "offline_after_s": 20,
        "log_level": "info",
    }
    return config | changes


class Stage:
    """All parts, started in `folder`. `mqtt_port`: a broker that is there already."""

    board_name = "virtual"

    def __init__(
        self,
        folder: Path,
        *,
        mqtt_port: int | None = None,
        mqtt_login: dict[str, str] | None = None,
        gateway: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        heap: str = "96k",
    ) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mqtt_port = mqtt_port
        self._login = mqtt_login
        self._gateway_changes = gateway or {}
        self._config_changes = config or {}
        self._heap = heap
        self._parts: list[Any] = []
        self._cp = "A"
        self._http = httpx.Client(timeout=30, trust_env=False)

    # --- life

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _part(self, *args: str) -> Part:
        part = Part(self.folder, *args)
        self._parts.append(part)
        return part

    def _start(self) -> None:
        folder = self.folder
        if self._mqtt_port is None:
            self._mqtt_port = self._part("tools.broker", "--port", "0").ready["port"]
        key = secrets.token_hex(32)
        identity: dict[str, Any] = {"kid": 1, "key": key}
        identity["wifi"] = {"ssid": "demo", "password": "demo-demo"}
        if self._login:
            identity["mqtt"] = self._login
        self._write("secrets.json", identity)
        os.chmod(folder / "secrets.json", 0o600)
        site = self.board_config() | self._config_changes
        self._write("config.json", site)
        assert self._mqtt_port
        config = gateway_config(folder, self._mqtt_port, key)
        self._write("gateway.json", config | self._gateway_changes)
        self.start_gateway()
        pty = folder / "meter.tty"
        self.meter = Meter(self._part(*simulate(site["evses"][0], pty)).ready["control"])
        self._parts.append(_Closing(self.meter.close))
        self.board = VirtualBoard(
            state=folder / "board", serial=str(pty), pty=folder / "board.tty", heap=self._heap,
            arguments=("--board", self.board_name),
        ).start()  # fmt: skip
        self._parts.append(self.board)
        threading.Thread(target=self._follow, daemon=True).start()

    def _write(self, name: str, content: dict[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(content, indent=1) + "\n")

    def board_config(self) -> dict[str, Any]:
        """The site's config.json."""
        evse = {"n": 1, "meter": METER, "bus": "rs485", "unit": 1, "max_a": 32, "phases": 3}
        return {
            "station_id": STATION,
            "board": self.board_name,
            "link": {
                "kind": "mqtt",
                "host": "127.0.0.1",
                "port": self._mqtt_port,
                "insecure": True,
            },
            "buses": {"rs485": {"kind": "rtu", "uart": 1, "baud": 9600}},
            "evses": [evse],
            "live_s": 2,
        }

    def start_gateway(self) -> None:
        """Start the gateway, or another one over the same database."""
        config = json.loads((self.folder / "gateway.json").read_text())
        self.gateway = self._part("tools.gateway", "--config", str(self.folder / "gateway.json"))
        if config["port"] == 0:  # the next one listens where this one did
            self._write("gateway.json", config | {"port": self.gateway.ready["port"]})

    def start_emsp(self, *words: str) -> None:
        """The eMSP registers, pulls locations and pushes its tokens by itself. `words`: more of
        its command line."""
        self._write(
            "emsp.json",
            {"country_code": "NL", "party_id": "EMS", "name": "Demo eMSP", "tokens": DRIVERS},
        )
        emsp = self._part(
            *("tools.emsp", "--port", "0", "--config", str(self.folder / "emsp.json")),
            *("--cpo-versions-url", self.gateway.ready["versions_url"]),
            *("--token-a", "demo-registration-token", "--state", str(self.folder / "emsp")),
            *words,
        )
        self.emsp_url: str = emsp.ready["url"]

    def stop(self) -> None:
        for part in reversed(self._parts):
            part.stop()
        self._parts = []
        self._http.close()

    # --- the firmware

    def install(self) -> None:
        """The firmware onto the board's flash without the console: quick, for tests."""
        from tools.virtual_board import image

        self.board.power_off()
        config = json.loads((self.folder / "config.json").read_text())
        made = build.build(self.board_name, config)
        files = made.files("a") | {"/slot": b"a"}
        for name in ("config.json", "secrets.json"):
            files["/" + name] = (self.folder / name).read_bytes()
        image.write_files(self.board.flash, files)
        self.board.power_on()

    def deploy(self, tell: Callable[[str], None]) -> None:
        """`make deploy`, as onto a real board."""
        command = ["make", "--no-print-directory", "deploy", f"PORT={self.board.link}"]
        command += [f"BOARD={self.board_name}", f"CONFIG={self.folder / 'config.json'}"]
        command += [f"SECRETS={self.folder / 'secrets.json'}"]
        with subprocess.Popen(
            command, cwd=paths.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout
            for line in process.stdout:
                tell(line.rstrip())
        if process.returncode:
            raise StageError(f"make deploy ended with {process.returncode}")

    # --- the world

    def plug(self, cp: str) -> None:
        """A: no car. B: plugged in. C: plugged in and asking for energy."""
        self.board.car(cp)
        self._cp = cp
        self._load()

    def show(self, driver: str) -> None:
        """A driver's card at the reader."""
        self.board.token(DRIVERS[driver]["uid"])

    def _load(self) -> None:
        closed = self.board.pins()["contactor_feedback"]
        self.meter.ask("load", w=CAR_W if closed and self._cp == "C" else 0)

    def _follow(self) -> None:
        """The load follows the contactor, as the board's pins show it."""
        watch = self.board.watch
        at = 0
        while self._parts:
            try:
                event = watch.wait_for(lambda e: e["ev"] in ("contactor", "power"), 1e6, at)
            except Exception:
                return  # the board has ended
            at = watch.events.index(event, at) + 1
            if event["ev"] == "contactor":
                w = CAR_W if event["value"] and self._cp == "C" else 0
                self.meter.ask("load", w=w)

    # --- looking

    def admin(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The gateway's operator page: GET, or POST of `body`."""
        reply = self._http.request(
            "GET" if body is None else "POST",
            f"http://127.0.0.1:{self.gateway.ready['port']}/admin/{path}",
            json=body,
            headers={"Authorization": "Bearer demo-admin-token"},
        )
        if reply.status_code >= 400:
            raise StageError(f"/admin/{path}: {reply.status_code} {reply.text}")
        return reply.json()

    def station(self) -> dict[str, Any]:
        """What the gateway knows of the board."""
        return self.admin("stations")["stations"][STATION]

    def records(self, after: int = 0) -> list[dict[str, Any]]:
        """The gateway's copy of the journal, as it came: `id`, `journal`, `seq`, `body`."""
        found: list[dict[str, Any]] = []
        while page := self.admin(f"stations/{STATION}/records?after={after}"):
            found += page
            after = page[-1]["id"]
        return found

    def emsp(self) -> dict[str, Any]:
        """Everything the eMSP holds."""
        return self._http.get(f"{self.emsp_url}/admin/state").json()

    def emsp_post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The eMSP's operator page."""
        reply = self._http.post(f"{self.emsp_url}/admin/{path}", json=body)
        if reply.status_code != 200:
            raise StageError(f"{path}: {reply.text}")
        return reply.json()

    def evse_status(self) -> str | None:
        """The EVSE's status as the eMSP has it."""
        evse = self.emsp()["evses"].get(EVSE)
        return evse and evse["status"]

    def command(self, kind: str, **fields: Any) -> dict[str, Any]:
        """An OCPI command of the eMSP; the entry with its CommandResponse."""
        return self.emsp_post("commands", {"type": kind, **fields})

    def result(self, entry: dict[str, Any], timeout_s: float = 30) -> str:
        """The CommandResult that came to the command's response_url."""

        def come() -> str | None:
            results = self.emsp()["commands"][entry["id"]]["results"]
            return results[0]["result"] if results else None

        return until(f"CommandResult of {entry['type']}", come, timeout_s)


class _Closing:
    def __init__(self, stop: Callable[[], None]) -> None:
        self.stop = stop
