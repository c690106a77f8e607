"""The real agent and the real gateway in virtual time, in one process, without a socket.

Purpose: what happens between eMSP, gateway and boards, to the millisecond and repeatably.
Theory: each board is a `portable.bench.World` with the firmware's own agent; its messages go
straight into the gateway's southbound side and the answers back. The eMSP is what OCPI asks of the
gateway (through the ASGI app) and what it finds in the outbox for it. All clocks are one.
Limits: pushes are looked at in the outbox, not sent; `test_gateway_outbox.py` sends them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from portable import bench
from portable.bench import World
from sqlalchemy import select

from host_tests.gateway_kit import config_of, token
from tools.gateway import ocpi
from tools.gateway.app import create_app
from tools.gateway.config import parse_config
from tools.gateway.northbound import reservation_key
from tools.gateway.store import CdrRow, Evse, Outbox, Party, SessionRow

LOCATION = "LOC1"
ALICE = bench.ANNA
BOB = bench.BERT
SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
Fields = dict[str, Any]


class Board(World):
    """A board in a town: its own station id, the town's time and gateway."""

    def __init__(self, town: Town, station_id: str, evses: int, **fields: Any) -> None:
        super().__init__(evses, **fields)
        self.config["station_id"] = station_id
        self.town = town
        self.station_id = station_id
        self.gateway = self  # what the bench hands to the other end
        self.seed = station_id.encode()

    def random(self, n: int) -> bytes:
        self.drawn += 1
        return hashlib.sha256(self.seed + self.drawn.to_bytes(4, "big")).digest()[:n]

    def take(self, message: bytes) -> None:
        """An up message: into the gateway, its answer onto the link."""
        town = self.town
        town.wire.append((self.station_id, "up", message))
        if town.gateway_up:
            answer = town.south.handle(self.station_id, message, "mqtt")
            if answer:
                town.carry(self.station_id, answer)

    def held(self, n: int = 1) -> Any:
        return self.evse(n).reservation

    def closed(self, n: int = 1) -> bool:
        return self.pins[n].is_closed()

    def show(self, token: Fields) -> None:
        self.app.card(token["uid"])


class Town:
    """One Location. `boards`: station id -> number of EVSEs; their uids are E1, E2... in order."""

    def __init__(self, folder: Path, boards: dict[str, int] | None = None, **fields: Any) -> None:
        self.folder = folder
        boards = boards or {"DEMO-1": 1}
        self.ms = 0
        self.gateway_up = True
        self.wire: list[tuple[str, str, bytes]] = []
        self.uids: dict[str, tuple[str, int]] = {}
        config = config_of(folder)
        location = config["locations"][0]
        pattern = location["evses"][0]
        location["evses"] = []
        for station_id, evses in boards.items():
            for n in range(1, evses + 1):
                uid = f"E{len(self.uids) + 1}"
                self.uids[uid] = station_id, n
                place = {"station_id": station_id, "evse": n}
                location["evses"].append(pattern | {"uid": uid, "evse_id": None, "board": place})
                del location["evses"][-1]["evse_id"]
        key = {"kid": 1, "key": bench.KEY.hex()}
        self.config = config | {"stations": dict.fromkeys(boards, key)}
        self.start_gateway()
        self.parties: dict[str, str] = {}
        self.register("EMS")
        self.boards = {
            station_id: Board(self, station_id, evses, **fields)
            for station_id, evses in boards.items()
        }
        for board in self.boards.values():
            board.boot()
        self.run(5 * SECOND)
        for board in self.boards.values():
            assert board.app.now() is not None, "the board has no time"

    # --- the gateway

    def start_gateway(self) -> None:
        """Start it over its database."""
        self.app = create_app(
            parse_config(self.config), "http://gateway.test", now_ms=lambda: self.unix_ms
        )
        self.south = self.app.state.context.southbound
        self.store = self.app.state.context.store
        self.south.publish = self._publish

    def _publish(self, station_id: str, raw: bytes) -> bool:
        self.carry(station_id, raw)
        return True

    def carry(self, station_id: str, raw: bytes) -> None:
        board = self.boards[station_id]
        self.wire.append((station_id, "down", raw))
        if board.online and board.board is not None:
            board.board.link.down.append((raw, False))

    def stop_gateway(self) -> None:
        self.gateway_up = False
        self.store.kw["bind"].dispose()

    def back_up(self) -> Path:
        """A copy of the database as it is now."""
        with self.store() as db:
            db.connection().exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return Path(shutil.copy(self.folder / "gateway.sqlite3", self.folder / "backup"))

    def restore(self, backup: Path) -> None:
        """The gateway dies and comes up over an older database."""
        self.stop_gateway()
        for file in self.folder.glob("gateway.sqlite3-*"):
            file.unlink()
        shutil.copy(backup, self.folder / "gateway.sqlite3")
        self.start_gateway()
        self.gateway_up = True

    # --- time

    @property
    def unix_ms(self) -> int:
        return bench.UNIX_MS + self.ms

    def run(self, ms: int, step: int = 100) -> None:
        end = self.ms + ms
        while self.ms < end:
            step = min(step, end - self.ms)
            for board in self.boards.values():
                if board.board is None:
                    board.pass_ms(step)
                else:
                    board.run(step, step)
            second = self.ms // SECOND
            self.ms += step
            if self.gateway_up and self.ms // SECOND != second:
                self.south.tick()

    def cut(self, station_id: str = "DEMO-1") -> None:
        """The power goes; `boot` brings it back."""
        board = self.boards[station_id]
        for n in board.pins:
            board.pins[n].contactor_out = False
            board.real[n].power_w = 0
        board.board = board.app = None

    def boot(self, station_id: str = "DEMO-1") -> None:
        self.boards[station_id].boot()

    def reboot(self, station_id: str = "DEMO-1", off_ms: int = 1000, run_ms: int = 5000) -> None:
        self.cut(station_id)
        self.run(off_ms)
        self.boot(station_id)
        self.run(run_ms)

    # --- the eMSP

    def register(self, party_id: str) -> None:
        self.parties[party_id] = f"token-c-{party_id}"
        digest = hashlib.sha256(self.parties[party_id].encode()).hexdigest()
        role = {"role": "EMSP", "country_code": "NL", "party_id": party_id}
        url = f"http://{party_id.lower()}.test"
        endpoints = [
            {"identifier": name, "role": "RECEIVER", "url": f"{url}/{name}"}
            for name in ("sessions", "locations", "cdrs")
        ]
        with self.store.begin() as db:
            db.add(
                Party(
                    token_hash=digest, token="b", url=url,
                    roles=ocpi.dumps([role | {"business_details": {"name": party_id}}]),
                    endpoints=ocpi.dumps(endpoints),
                )
            )  # fmt: skip

    def ocpi(self, method: str, path: str, body: Any = None, party: str = "EMS") -> Any:
        """An OCPI request; `data` of the answer."""
        shown = base64.b64encode(self.parties[party].encode()).decode()
        headers = {"Authorization": f"Token {shown}", "X-Request-ID": "1", "X-Correlation-ID": "1"}

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://g.test") as client:
                return await client.request(
                    method, f"/ocpi/2.2.1/{path}", json=body, headers=headers
                )

        answer = ocpi.loads(asyncio.run(ask()).content)
        assert answer["status_code"] in (1000, 2001, 2003), answer
        return answer.get("data")

    def command(self, kind: str, party: str = "EMS", wait_ms: int = 3000, **body: Any) -> str:
        """An OCPI command, and time for it. Its CommandResult; else, in brackets, what the
        CommandResponse said, or nothing where no result has come."""
        url = f"http://{party.lower()}.test/results/{kind}/{self.ms}/{len(self.wire)}"
        self.url = url
        data = self.ocpi("POST", f"commands/{kind}", body | {"response_url": url}, party)
        if data["result"] != "ACCEPTED":
            return f"[{data['result']}]"
        self.run(wait_ms)
        return " ".join(self.results(url)) or "[]"

    def reserve(
        self, id: str = "R1", who: Fields = ALICE, uid: str | None = "E1",
        expiry_ms: int = 15 * MINUTE, party: str = "EMS", **more: Any,
    ) -> str:  # fmt: skip
        moment = datetime.fromtimestamp((self.unix_ms + expiry_ms) / 1000, UTC)
        body: Fields = {
            "reservation_id": id, "token": as_ocpi(who), "location_id": LOCATION,
            "expiry_date": f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z",
        }  # fmt: skip
        if uid is not None:
            body["evse_uid"] = uid
        return self.command("RESERVE_NOW", party, **(body | more))

    def cancel(self, id: str = "R1", party: str = "EMS") -> str:
        return self.command("CANCEL_RESERVATION", party, reservation_id=id)

    def start(self, who: Fields, uid: str | None = "E1", **more: Any) -> str:
        body: Fields = {"token": as_ocpi(who), "location_id": LOCATION}
        if uid is not None:
            body["evse_uid"] = uid
        return self.command("START_SESSION", **(body | more))

    def know(self, who: Fields, party: str = "EMS") -> None:
        """The eMSP pushes this token: the gateway lets its card charge."""
        self.ocpi("PUT", f"tokens/NL/{party}/{who['uid']}", as_ocpi(who), party)

    def results(self, url: str) -> list[str]:
        with self.store() as db:
            rows = db.scalars(
                select(Outbox)
                .where(Outbox.kind == "command_result", Outbox.url == url)
                .order_by(Outbox.id)
            )
            return [ocpi.loads(row.body)["result"] for row in rows]

    # --- what it sees

    def sessions(self) -> list[Fields]:
        with self.store() as db:
            rows = db.scalars(select(SessionRow).order_by(SessionRow.number))
            return [ocpi.loads(row.object) for row in rows if row.object]

    def cdrs(self) -> list[Fields]:
        with self.store() as db:
            return [ocpi.loads(r.object) for r in db.scalars(select(CdrRow).order_by("number"))]

    def status(self, uid: str = "E1") -> str:
        with self.store() as db:
            return db.get_one(Evse, uid).status

    def board_id(self, id: str = "R1", party: str = "EMS") -> str:
        """What the boards call this reservation."""
        return reservation_key(f"NL-{party}", LOCATION, id)


def as_ocpi(who: Fields) -> Fields:
    more = {k: who[k] for k in ("type", "group_id") if k in who}
    return token(who["uid"], who["party_id"], **more)
