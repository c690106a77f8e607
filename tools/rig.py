"""A test bench for numbers: the virtual board, a broker, a simulated meter and a scripted gateway.

`make size` and `make bench` count on it. Theory: the firmware is the deployed one, in the 32-bit
VM; the broker and the meter are real processes; only the gateway is played, so that its clock can
skip ahead together with the board's and the meter's, and so that nothing but the board's own
behaviour is counted. `Rig.probe` makes the VM describe its heap: a few lines are appended to the
board's boot.py for that, whose cost is measured and shown.

Limits: flash, network and bus take no time here; counts and bytes are meant, never seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
import secrets
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
import uvicorn
from fastapi import FastAPI, Request, Response
from paho.mqtt.enums import CallbackAPIVersion

from tools import build
from tools.certificates import YEAR, Authority
from tools.gateway.app import KEEP_ALIVE_S
from tools.gateway.messages import is_brief
from tools.relay import Relay
from tools.stage import METER, Meter, Part, StageError, simulate, until
from tools.virtual_board.client import BoardError, VirtualBoard
from tools.virtual_board.wires import LAYOUT, Wires

STATION = "RIG-1"
KEY = bytes(range(32))
UNIX_MS = 1_790_000_000_000  # when a bench begins
UID = "04A1B2C3D4E580"
TOKEN = {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": UID}
LOAD_W = 11_000
MAX_MESSAGE = 4096
STEP_S = 12  # below the 15 s in which a ping wants its answer, also when it comes amid a turn
MOST_STEPS = 30
GC_BLOCK = 16  # bytes, on a 32-bit VM
PROBE = f"""
import gc, micropython, sys, wires
gc.collect()
_probe = gc.mem_alloc()
def _weigh(plain=wires.weigh):
    plain()
    if wires.words[{LAYOUT["collect"]}]:
        micropython.mem_info()
        print('modules', ' '.join(sys.modules))
wires.weigh = _weigh
gc.collect()
print('probe', gc.mem_alloc() - _probe)
"""


class RigError(Exception):
    """The board did not do what was waited for; the text ends with its console."""


class Gateway:
    """Answers every whole up message at once: acknowledges, tells the time, hands over commands
    until they have their results; a brief one where there is a command."""

    def __init__(self, brief_s: int) -> None:
        self._brief_s = brief_s
        self._begun = time.monotonic()
        self._skipped_ms = 0
        self._n = 0
        self._told: dict[str, Any] = {}  # what the last answer acknowledged
        self._lock = threading.Lock()
        self.commands: list[dict[str, Any]] = []  # not yet sent
        self._waiting: list[dict[str, Any]] = []  # for their results
        self._sid = ""
        self.headers: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self.largest = 0  # bytes of the largest up message

    def take(self, raw: bytes) -> bytes | None:
        """The answer to an up message: b"" where there is nothing to say, None where it is
        nobody's."""
        mac, _, text = raw.partition(b"\n")
        if mac != self._mac("up", text):
            return None
        head, *bodies = [json.loads(line) for line in text.split(b"\n")]
        told = [body["command_id"] for body in bodies if body["t"] == "result"]
        self._waiting = [command for command in self._waiting if command["id"] not in told]
        if "health" in head:
            self._waiting = [row for row in self._waiting if row["type"] != "GET_HEALTH"]
        commands: list[dict[str, Any]] = []
        if head["sid"] == self._sid:  # not with the first answer of a boot
            commands = self._waiting + self.commands
            self._waiting += [row for row in self.commands if "pad" not in row["data"]]
            self.commands = []
        self._sid = head["sid"]
        if card := head.get("authorize"):
            data = {**card, "allowed": "ALLOWED", "token": TOKEN}
            commands = [*commands, self.command("AUTHORIZE", data)]
        if not is_brief(head):
            ack = head["seq"] + len(bodies) - 1
            if head["journal"] == self._told.get("journal"):
                ack = max(ack, self._told["ack"])
            self._told = {"journal": head["journal"], "ack": ack}
        answer = b"" if is_brief(head) and not commands else self._answer(head, commands)
        with self._lock:
            self.largest = max(self.largest, len(raw))
            self.records += bodies
            self.headers.append(head)
        return answer

    def unix_ms(self) -> int:
        passed_ms = int((time.monotonic() - self._begun) * 1000)
        return UNIX_MS + passed_ms + self._skipped_ms

    def skip(self, ms: int) -> None:
        self._skipped_ms += ms

    def _mac(self, purpose: str, text: bytes) -> bytes:
        name = f"wattlock/1/{purpose}/{STATION}".encode()
        key = hmac.new(KEY, name, hashlib.sha256).digest()
        return hmac.new(key, text, hashlib.sha256).hexdigest().encode()

    def _answer(self, head: dict[str, Any], commands: list[dict[str, Any]]) -> bytes:
        self._n += 1
        answer: dict[str, Any] = {
            "v": 1, "kid": 1, "sid": head["sid"], "n": self._n, "unix_ms": self.unix_ms(),
            **self._told,
        }  # fmt: skip
        if not is_brief(head):
            answer |= {"re": head["up_ms"], "brief_s": self._brief_s}
        if commands:
            answer["commands"] = commands
        text = json.dumps(answer, separators=(",", ":")).encode()
        for command in commands:
            if "pad" in command["data"]:
                command["data"]["pad"] = "x" * (MAX_MESSAGE - 65 - len(text))
                text = json.dumps(answer, separators=(",", ":")).encode()
        return self._mac("down", text) + b"\n" + text

    def command(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        exp = self.unix_ms() + 1_800_000
        return {"id": secrets.token_hex(16), "type": kind, "exp": exp, "data": data}

    def seen(self, t: str, **fields: Any) -> bool:
        """Has a record of type `t` with these fields come?"""
        with self._lock:
            return any(
                r["t"] == t and all(r.get(k) == v for k, v in fields.items()) for r in self.records
            )


class OverMqtt:
    """A gateway at a broker."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        self._gateway = gateway
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="rig")
        self._client.on_message = self._came
        self._client.connect("127.0.0.1", port)
        self._client.subscribe(f"wattlock/1/{STATION}/up")
        self._client.loop_start()

    def _came(self, client: Any, userdata: Any, message: Any) -> None:
        if answer := self._gateway.take(message.payload):
            self._client.publish(f"wattlock/1/{STATION}/down", answer)

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class OverHttp:
    """A gateway behind the web server that the real one has."""

    def __init__(self, gateway: Gateway, files: tuple[Path, Path] | None) -> None:
        app = FastAPI()

        @app.post(f"/wattlock/1/{STATION}")
        async def up(request: Request) -> Response:
            answer = gateway.take(await request.body())
            if answer is None:
                return Response(status_code=403)
            return Response(answer, media_type="application/octet-stream")

        options: dict[str, Any] = {}
        if files is not None:
            options = {"ssl_certfile": str(files[0]), "ssl_keyfile": str(files[1])}
        config = uvicorn.Config(
            app, lifespan="off", log_level="critical", timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1, **options,
        )  # fmt: skip
        config.load()
        if config.ssl is not None:
            config.ssl.maximum_version = ssl.TLSVersion.TLSv1_2  # as at the broker
        self._server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        self._thread.start()
        until("the web server", lambda: self._server.started, 15)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(15)


class Rig:
    """`setup` is Python that runs on the board at the end of boot.py; with `start` False main.py
    finds no application and the board waits at its prompt. `journal` are the files that are in the
    board's journal already, written under KEY and STATION. `link` is mqtt, mqtts, http or https;
    `relay` counts what goes over it. With `brief_s` 0 the gateway wants whole messages only.
    `identity`: more members of secrets.json."""

    def __init__(
        self,
        heap: str = "96k",
        setup: str = "",
        start: bool = True,
        journal: Mapping[str, bytes] | None = None,
        link: str = "mqtt",
        brief_s: int = 960,
        identity: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="wattlock-rig-")
        self._folder = Path(self._temporary.name)
        self._heap = heap
        self._setup = setup
        self._begin = start
        self._journal = journal or {}
        self._link = link
        self.gateway = Gateway(brief_s)
        self._config = config
        self._identity = identity or {}
        self._parts: list[Any] = []

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
        self._temporary.cleanup()

    def _start(self) -> None:
        folder = self._folder
        self.relay = Relay()
        self._parts.append(self.relay)
        link, identity = self._connect(folder)
        pty = folder / "meter.tty"
        config = {
            "station_id": STATION,
            "board": "virtual",
            "link": link,
            "buses": {"rs485": {"kind": "rtu", "uart": 1, "baud": 9600}},
            "evses": [
                {"n": 1, "meter": METER, "bus": "rs485", "unit": 1, "max_a": 32, "phases": 3}
            ],
        } | self._config
        simulator = Part(folder, *simulate(config["evses"][0], pty))
        self._parts.append(simulator)
        self.meter = Meter(simulator.ready["control"])
        identity |= {"kid": 1, "key": KEY.hex()}
        identity["wifi"] = {"ssid": "rig", "password": "rig-rig-rig"}
        identity |= self._identity
        files = build.build(config["board"], config).files("a")
        files["/boot.py"] += (PROBE + self._setup).encode()
        self.site = config
        self.identity = identity
        files["/config.json"] = json.dumps(config).encode()
        files["/secrets.json"] = json.dumps(identity).encode()
        files |= {f"/journal/{name}": data for name, data in self._journal.items()}
        if self._begin:
            files["/slot"] = b"a"
        self.board = VirtualBoard(
            state=folder / "board", files=files, serial=str(pty), heap=self._heap
        ).start()
        self._parts.append(self.board)
        self._wires = Wires(self.board.state / "wires")

    def _connect(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts the gateway's end of the link. Returns the board's: `link` of its config.json,
        and what its secrets.json has for it."""
        kind = self._link.removesuffix("s")
        secure = kind != self._link
        # a name has to match its certificate; asking for it would load code and stubs for that
        host = f"{'localhost' if secure else '127.0.0.1'}:{self.relay.port}"
        files: tuple[Path, Path] | None = None
        identity: dict[str, Any] = {}
        if secure:
            ca = Authority()
            server = ca.issue("localhost", begins=-YEAR, lasts=2 * YEAR)  # the rig's time, too
            files = server.write(folder, "server")
            identity["tls"] = {"ca": ca.issued.der, "at_s": int(time.time())}
        if kind == "http":
            end: OverHttp | OverMqtt = OverHttp(self.gateway, files)
            self.relay.target = end.port
            link: dict[str, Any] = {"kind": kind, "url": f"{self._link}://{host}"}
        else:
            tls = ["--tls", *map(str, files)] if files else []
            broker = Part(folder, "tools.broker", "--port", "0", *tls)
            self._parts.append(broker)
            end = OverMqtt(self.gateway, broker.ready["port"])
            self.relay.target = broker.ready["tls_port" if secure else "port"]
            name, _, port = host.partition(":")
            link = {"kind": kind, "host": name, "port": int(port)}
        self._parts.append(end)
        return link if secure else link | {"insecure": True}, identity

    # --- time

    def turns(self, count: int = 20) -> None:
        """Let the agent's loop turn so often: enough to send, be answered and poll the meter."""
        begun = self._wires["wdt_fed"]
        self.until("turns of the loop", lambda: self._wires["wdt_fed"] - begun >= count)

    def skip(self, ms: int) -> None:
        """Time passes at once, for board, meter and gateway alike; then what the board has to say
        about it is said and answered."""
        self.gateway.skip(ms)
        self.meter.ask("advance", ms=ms)
        self.board.advance(ms)
        self.settle()

    def settle(self) -> None:
        """Let the board say what it has to, and hear what there is to hear."""
        said = -1
        while said != self.relay.bytes:
            self.until("the broker's answer to a ping", lambda: not self.relay.pings)
            said = self.relay.bytes
            self.turns()

    def pass_time(self, seconds: int) -> None:
        """Skip in steps that no part takes for a failure of another."""
        self.settle()
        for _ in range(seconds // STEP_S):
            self.skip(STEP_S * 1000)

    # --- the gateway

    def until(self, what: str, found: Callable[[], Any], timeout_s: float = 30) -> Any:
        """The first true value of `found`; RigError after the deadline."""
        with self._telling():
            return until(what, found, timeout_s)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (StageError, BoardError) as error:
            tail = self.board.console()[-700:]
            raise RigError(f"{error}; the board's console ends:\n{tail}") from None

    def wait(self, **pins: int) -> None:
        """Wait for pins of EVSE 1 to have these values together."""
        with self._telling():
            self.board.wait(timeout_s=30, **pins)

    def online(self) -> None:
        """Wait until the board has told its boot and the time is on record."""
        self.until("the boot and time records", lambda: self.gateway.seen("time"))
        self.turns()

    def command(self, kind: str, data: dict[str, Any]) -> None:
        """Hand a command over with the next answer; wait until it has its result."""
        command = self.gateway.command(kind, data)
        self.gateway.commands.append(command)
        self._until_told(
            f"the result of {kind}", lambda: self.gateway.seen("result", command_id=command["id"])
        )

    def health(self) -> dict[str, int]:
        """The board's own picture of itself."""
        at = len(self.gateway.headers)
        self.gateway.commands.append(self.gateway.command("GET_HEALTH", {}))
        return self._until_told("health", lambda: self._health(at))

    def full_size(self) -> bool:
        """Ask for health in a message of 4,096 bytes; was it read, or refused as malformed?"""
        at = len(self.gateway.headers)
        self.gateway.commands.append(self.gateway.command("GET_HEALTH", {"pad": ""}))
        refused = {"what": "message", "why": "malformed"}
        self._until_told(
            "health or a refusal",
            lambda: self._health(at) or self.gateway.seen("refused", **refused),
        )
        return self._health(at) is not None

    def _health(self, at: int) -> dict[str, int] | None:
        return next((h["health"] for h in self.gateway.headers[at:] if "health" in h), None)

    def _until_told(self, what: str, found: Callable[[], Any]) -> Any:
        """A board without news is silent: time skips until it comes for its commands."""
        for _ in range(MOST_STEPS):
            if not self.gateway.commands:
                break
            self.skip(STEP_S * 1000)
        return self.until(what, found)

    # --- the world

    def plug(self, cp: str) -> None:
        """A: no car. B: plugged in. C: plugged in and asking for energy."""
        self.board.car(cp)
        self.turns()

    def pilot_fault(self, on: bool) -> None:
        """The safety controller reports a fault, or none again: a record, with or without link."""
        mark = self.board.watch.mark()
        self.board.car("F" if on else "A")
        self.skip(1000)  # looked at every second
        with self._telling():
            self.board.watch.wait_for(lambda e: e["ev"] == "sync", 20, mark)

    def show_card(self) -> None:
        self.board.token(UID)

    def charging(self) -> None:
        """Wait for the contactor, and for the record that it was seen closed."""
        self.wait(contactor=1, lock=1)
        self.meter.ask("load", w=LOAD_W)
        self.until("CHARGING on record", lambda: self.gateway.seen("status", status="CHARGING"))

    def stopped(self) -> None:
        """Wait for the contactor and the lock to open, and for the stop on record."""
        self.wait(contactor=0)
        self.meter.ask("load", w=0)
        self.wait(lock=0)
        self.until("the stop record", lambda: self.gateway.seen("stop"))

    # --- the heap

    def probe(self) -> dict[str, Any]:
        """The heap after a collection: `used`, `free`, `largest` (free block), in bytes, and the
        `modules` that are loaded."""
        at = len(self.board.console())
        self.board.heap(collect=True)
        text = self.until("the probe", lambda: self._probed(at))
        numbers = re.search(r"used: (\d+), free: (\d+)(?s:.*?)max free sz: (\d+)", text)
        modules = re.search(r"^modules (.*)$", text, re.M)
        assert numbers and modules, text
        used, free, largest = map(int, numbers.groups())
        return {
            "used": used,
            "free": free,
            "largest": largest * GC_BLOCK,
            "modules": modules[1].split(),
        }

    def _probed(self, at: int) -> str:
        text = self.board.console()[at:]
        return text if "\n" in text.partition("modules ")[2] else ""
