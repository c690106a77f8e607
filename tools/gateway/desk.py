"""Commands on their way to a board, and their results on the way back.

Purpose: a command is durable before it leaves, is repeated until its `result` record or its
expiry, and its asker gets exactly one CommandResult.
Theory
1. pending -> done (result) or timeout (expiry). The first end wins and is told to the
   response_url. What a board executed though its asker was told TIMEOUT is undone; undoing has no
   expiry, it is repeated until the board has answered.
2. A reservation is in force at one spot, with the wish that was accepted last. Placing it anew
   (the eMSP's replacement, or a move of ours) leaves it where it is until the new place has said
   ACCEPTED; then the old one is released, else the old one stands.
3. One for which the eMSP named no EVSE goes to another free one where the board says no, moves
   when its EVSE falls out of service, and is given back (CANCELED_RESERVATION to the response_url
   of its RESERVE_NOW) when there is no other. One with a named EVSE is given back. So is what a
   board has forgotten that lost its journal.
Limits: a reservation moves within its Location. A board that goes offline keeps what it has.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session as Db

from tools.gateway import messages, ocpi, outbox
from tools.gateway.catalog import Catalog, Place
from tools.gateway.keys import Keyring
from tools.gateway.placing import OUT_OF_SERVICE, Spot, free, spot
from tools.gateway.store import Command, Reservation, SessionRow
from tools.gateway.transport import Caller

PER_MESSAGE = 4
LIFE_MAX_MS = 3_600_000
SET_CONFIG_MAX_BYTES = 1000  # with a heap of 112 KiB: host_tests/test_heap.py
ELSEWHERE = ("EVSE_OCCUPIED", "EVSE_INOPERATIVE")  # another EVSE may say yes

# why the gateway itself asks
UNDO = "undo"
MOVE = "move"


class Desk:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._config = catalog.config
        self.keys = Keyring(catalog.config)
        self.news: set[str] = set()  # stations for which there is something new

    @property
    def timeout_ms(self) -> int:
        return self._config.command_timeout_s * 1000

    def queue(
        self, db: Db, station_id: str, type: str, data: dict[str, Any], now_ms: int, **asker: Any
    ) -> Command:
        """Make a command durable (with the caller's commit). Raises ValueError on bad `data`."""
        life_ms = self.timeout_ms
        if type == "ROTATE_KEY":
            data = self.keys.ask(db, station_id, secrets.token_bytes(32))
        elif type == "SET_CONFIG":
            life_ms = LIFE_MAX_MS  # it waits for the end of a session, and is tried then
            size = len(ocpi.dumps(data))
            if size > SET_CONFIG_MAX_BYTES:
                raise ValueError(
                    f"data: {size} bytes, a board reads {SET_CONFIG_MAX_BYTES}; send config and "
                    "each certificate by itself, and certificates with EC keys (P-256)"
                )
            site = data.get("config") or {}
            if not site and not data.get("secrets"):
                raise ValueError("data: is empty; give config, secrets or both")
            if site and site.get("station_id") != station_id:
                raise ValueError(f"config.station_id: must stay {station_id!r}")
        messages.COMMANDS[type].model_validate(data)
        asker.setdefault("reservation_id", data.get("reservation_id"))
        command = Command(
            id=secrets.token_hex(16),
            number=1 + (db.scalar(select(func.max(Command.number))) or 0),
            station_id=station_id,
            type=type,
            data=ocpi.dumps(data),
            created_ms=now_ms,
            exp_ms=now_ms + min(life_ms, LIFE_MAX_MS),
            state="pending",
            **asker,
        )
        db.add(command)
        db.flush()
        self.news.add(station_id)
        return command

    def pending(self, db: Db, station_id: str, now_ms: int) -> Sequence[Command]:
        return db.scalars(
            select(Command)
            .where(
                Command.station_id == station_id,
                Command.state == "pending",
                Command.exp_ms > now_ms,
            )
            .order_by(Command.number)
            .limit(PER_MESSAGE)
        ).all()

    def waiting_stations(self, db: Db) -> list[str]:
        found = db.scalars(select(Command.station_id).where(Command.state == "pending").distinct())
        return list(found)

    # --- results

    def on_result(
        self, db: Db, station_id: str, record: messages.ResultRecord, now_ms: int
    ) -> str | None:
        """Take a board's word. Gives the id of a Session that reads differently now, if any."""
        command = db.get(Command, record.command_id)
        if command is None or command.station_id != station_id or command.result is not None:
            return None
        if command.type == "SET_CONFIG":
            command.data = "{}"  # what it set may be secret, and has done its work
        elif record.nonce is not None and record.result == "ACCEPTED":
            self.keys.answered(db, station_id, ocpi.loads(command.data), record.nonce)
        in_time = command.state == "pending"
        command.result = record.result
        command.session_id = record.session_id
        if not in_time:
            if record.result == "ACCEPTED":
                self._undo(db, command, now_ms)
            return None
        command.state = "done"
        row = self._reservation(db, command)
        if row is None or command.type != "RESERVE_NOW" or command.why == UNDO:
            self._tell(db, command, record.result, now_ms)
            return None
        if record.result == "ACCEPTED":
            self._placed(db, row, command, now_ms)
        elif self._again(db, row, command, now_ms):
            return None
        else:
            self._not_placed(db, row, now_ms)
        self._tell(db, command, record.result, now_ms)
        return row.session_id

    def on_health(self, db: Db, station_id: str) -> None:
        for command in db.scalars(
            select(Command).where(
                Command.station_id == station_id,
                Command.state == "pending",
                Command.type == "GET_HEALTH",
            )
        ):
            command.state = "done"

    def expire(self, db: Db, now_ms: int) -> tuple[bool, list[str]]:
        """Commands past their time become TIMEOUT. (were there any, Sessions that read
        differently now)."""
        late = db.scalars(
            select(Command).where(Command.state == "pending", Command.exp_ms <= now_ms)
        ).all()
        changed = []
        for command in late:
            if command.why == UNDO:  # until the board has answered
                command.exp_ms = now_ms + min(self.timeout_ms, LIFE_MAX_MS)
                continue
            command.state = "timeout"
            row = self._reservation(db, command)
            if row is not None and command.type == "RESERVE_NOW":
                self._not_placed(db, row, now_ms)
                changed.append(row.session_id or "")
            self._tell(db, command, "TIMEOUT", now_ms)
        return bool(late), changed

    def _tell(self, db: Db, command: Command, result: str, now_ms: int) -> None:
        if command.response_url is not None and command.party_id is not None:
            deadline_ms = command.created_ms + self.timeout_ms
            outbox.tell_result(
                db, command.party_id, command.id, command.response_url, result, now_ms, deadline_ms
            )

    def answer_unknown(self, db: Db, caller: Caller, url: str, now_ms: int) -> None:
        """CANCEL_RESERVATION of an id that nobody reserved: the charge point's word is known."""
        outbox.tell_result(
            db,
            caller.party_id,
            secrets.token_hex(16),
            url,
            "UNKNOWN_RESERVATION",
            now_ms,
            now_ms + self.timeout_ms,
        )

    def _undo(self, db: Db, command: Command, now_ms: int) -> None:
        """The asker was told that it did not happen: take it back."""
        station_id = command.station_id
        if command.type == "START_SESSION" and command.session_id:
            data = {"session_id": command.session_id}
            self.queue(db, station_id, "STOP_SESSION", data, now_ms, why=UNDO)
        row = self._reservation(db, command)
        if row is None or command.type != "RESERVE_NOW":
            return
        newer = self._waiting(db, row, "RESERVE_NOW")
        if newer is not None and newer.station_id == station_id:
            return  # it takes the place of this one
        wish = ocpi.loads(row.wish or "{}")
        if row.accepted and row.station_id == station_id and wish["expiry_ms"] > now_ms:
            self.queue(db, station_id, "RESERVE_NOW", wish, now_ms, why=UNDO)  # as it was before
            return
        by = "move" if row.accepted and row.station_id != station_id else "cpo"
        data = {"reservation_id": row.id, "by": by}
        self.queue(db, station_id, "CANCEL_RESERVATION", data, now_ms, why=UNDO)

    # --- reservations

    def place(
        self,
        db: Db,
        row: Reservation,
        place: Place,
        wish: dict[str, Any],
        now_ms: int,
        **asker: Any,
    ) -> Command:
        """Ask for a reservation at a place. In force elsewhere, it keeps its Session id."""
        station_id, evse = spot(place)
        data = wish | {"evse": evse}
        data.pop("session_id", None)
        if row.session_id is not None and (row.accepted or row.moving):
            data["session_id"] = row.session_id
            session = db.get(SessionRow, row.session_id)
            if session is not None and station_id not in session.stations.split(","):
                session.stations += f",{station_id}"
        return self.queue(db, station_id, "RESERVE_NOW", data, now_ms, **asker)

    def rescue(self, db: Db, station_id: str, evses: Iterable[int], now_ms: int) -> None:
        """These EVSEs are out of service: move what is reserved there and may move."""
        for evse in evses:
            row = db.scalar(
                select(Reservation).where(
                    Reservation.station_id == station_id,
                    Reservation.evse == evse,
                    Reservation.accepted,
                    Reservation.named.is_(False),
                    Reservation.moving.is_(False),
                )
            )
            if row is not None:
                self._move(db, row, now_ms)

    def on_reserve(
        self, db: Db, station_id: str, record: messages.ReserveRecord, now_ms: int
    ) -> None:
        """Take over a reservation that a board holds and this database has never heard of."""
        place = self._catalog.at_board(station_id, record.evse)
        if place is None or db.get(Reservation, record.reservation_id) is not None:
            return
        wish = record.model_dump(
            include={"evse", "reservation_id", "token", "expiry_ms", "authorization_reference"},
            exclude_none=True,
        )
        db.add(
            Reservation(
                id=record.reservation_id,
                location_id=place.location.id.lower(),
                station_id=station_id,
                evse=record.evse,
                created_ms=now_ms,
                named=True,
                accepted=True,
                wish=ocpi.dumps(wish),
                session_id=record.session_id,
            )
        )
        db.flush()

    def on_release(
        self, db: Db, station_id: str, record: messages.ReleaseRecord, now_ms: int
    ) -> None:
        row = db.get(Reservation, record.reservation_id)
        if row is None or record.cause == "replaced":
            return
        if (row.station_id, row.evse) != (station_id, record.evse):
            return
        if record.cause == "cancelled_by_cpo":
            self._fallen(db, row, now_ms)
        else:
            row.accepted = row.moving = False  # where it goes meanwhile, it is taken back

    def forgotten(self, db: Db, station_id: str, now_ms: int) -> None:
        """The board has lost its journal: no reservation is in force there any more."""
        for row in db.scalars(
            select(Reservation).where(Reservation.station_id == station_id, Reservation.accepted)
        ).all():
            if ocpi.loads(row.wish or "{}").get("expiry_ms", 0) > now_ms:
                self._fallen(db, row, now_ms)
            row.accepted = False

    def _fallen(self, db: Db, row: Reservation, now_ms: int) -> None:
        """Where it was, it is not any more: elsewhere, or given back."""
        told = row.accepted
        row.accepted = False
        if told and not row.moving and (self._asked(db, row) or not self._move(db, row, now_ms)):
            self._given_back(db, row, now_ms)

    def in_force(self, db: Db, row: Reservation) -> bool:
        return row.accepted or row.moving or self._waiting(db, row, "RESERVE_NOW") is not None

    def holder(self, db: Db, row: Reservation) -> str:
        """The station to ask for an end of it."""
        coming = None if row.accepted else self._waiting(db, row, "RESERVE_NOW")
        return row.station_id if coming is None else coming.station_id

    def _reservation(self, db: Db, command: Command) -> Reservation | None:
        return db.get(Reservation, command.reservation_id) if command.reservation_id else None

    def _waiting(self, db: Db, row: Reservation, type: str) -> Command | None:
        """The newest command of this type that the board has not answered."""
        return db.scalar(
            select(Command)
            .where(
                Command.reservation_id == row.id,
                Command.type == type,
                Command.state == "pending",
            )
            .order_by(Command.number.desc())
        )

    def _asked(self, db: Db, row: Reservation) -> bool:
        """Was it cancelled on somebody's request, in time or late?"""
        asked = select(Command.id).where(
            Command.reservation_id == row.id,
            Command.type == "CANCEL_RESERVATION",
            Command.result.is_(None),
        )
        return db.scalar(asked) is not None

    def _move(self, db: Db, row: Reservation, now_ms: int) -> bool:
        """Ask for it at another EVSE. False: there is none, or it may not move."""
        wish = ocpi.loads(row.wish or "{}")
        if row.named or wish["expiry_ms"] <= now_ms:
            return False
        place = free(db, self._catalog, row.location_id, [(row.station_id, row.evse)])
        if place is None:
            return False
        row.moving = True
        self.place(db, row, place, wish, now_ms, why=MOVE)
        return True

    def _placed(self, db: Db, row: Reservation, command: Command, now_ms: int) -> None:
        wish = ocpi.loads(command.data)
        old, new = (row.station_id, row.evse), (command.station_id, wish["evse"])
        if command.why == MOVE and not row.moving:  # it has ended in the meantime
            self._undo(db, command, now_ms)
            return
        if row.accepted and old[0] != new[0]:
            data = {"reservation_id": row.id, "by": "move"}
            self.queue(db, old[0], "CANCEL_RESERVATION", data, now_ms, why=UNDO)
        if row.accepted and old != new and command.why != MOVE:
            row.named = True  # only whoever names another EVSE has it replaced there
        row.accepted, row.moving = True, False
        row.station_id, row.evse = new
        row.wish = command.data
        row.session_id = command.session_id
        row.response_url = command.response_url or row.response_url

    def _again(self, db: Db, row: Reservation, command: Command, now_ms: int) -> bool:
        """Said no where no EVSE is named: ask the next one, within the same time."""
        if row.named or row.accepted or command.result not in ELSEWHERE:
            return False
        tried = self._tried(db, command)
        place = free(db, self._catalog, row.location_id, tried)
        if place is None:
            return False
        asker = {
            name: getattr(command, name) for name in ("party_id", "sender", "response_url", "why")
        }
        command.response_url = None  # the next one answers
        again = self.place(db, row, place, ocpi.loads(command.data), now_ms, **asker)
        again.created_ms, again.exp_ms = command.created_ms, command.exp_ms
        return True

    def _tried(self, db: Db, command: Command) -> list[Spot]:
        since = select(Command).where(
            Command.reservation_id == command.reservation_id,
            Command.type == "RESERVE_NOW",
            Command.created_ms >= command.created_ms,
        )
        return [(c.station_id, ocpi.loads(c.data)["evse"]) for c in db.scalars(since)]

    def _not_placed(self, db: Db, row: Reservation, now_ms: int) -> None:
        """The old place stands, where there is one still."""
        if row.moving:
            row.moving = False
            if not row.accepted:
                self._given_back(db, row, now_ms)

    def _given_back(self, db: Db, row: Reservation, now_ms: int) -> None:
        if row.party_id is None or row.response_url is None:
            return
        outbox.tell_result(
            db,
            row.party_id,
            f"{row.id}/{now_ms}",
            row.response_url,
            "CANCELED_RESERVATION",
            now_ms,
            now_ms + self.timeout_ms,
        )


def out_of_service(live: dict[str, messages.Live]) -> list[int]:
    return [int(n) for n, picture in live.items() if picture.status in OUT_OF_SERVICE]
