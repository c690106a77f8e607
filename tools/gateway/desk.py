"""Commands on their way to a board, and their results on the way back.

Purpose: a command is durable before it leaves, is repeated until its `result` record or its
expiry, and its asker gets exactly one CommandResult.
Theory: pending -> done (result) or timeout (expiry). The first end wins and is told to the
response_url. A RESERVE_NOW or START_SESSION that the board executed but whose result came after
TIMEOUT is undone: the eMSP was told that it did not happen.
Limits: a reservation in force does not move to another board; such a RESERVE_NOW is REJECTED and
the old one stands.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session as Db

from tools.gateway import messages, ocpi, outbox
from tools.gateway.config import Config
from tools.gateway.store import Command, Reservation
from tools.gateway.transport import Caller

PER_MESSAGE = 4
LIFE_MAX_MS = 3_600_000


class Desk:
    def __init__(self, config: Config) -> None:
        self._config = config

    @property
    def timeout_ms(self) -> int:
        return self._config.command_timeout_s * 1000

    def queue(
        self, db: Db, station_id: str, type: str, data: dict[str, Any], now_ms: int, **asker: Any
    ) -> Command:
        """Make a command durable (with the caller's commit). Raises ValueError on bad `data`."""
        messages.COMMANDS[type].model_validate(data)
        command = Command(
            id=secrets.token_hex(16),
            number=1 + (db.scalar(select(func.max(Command.number))) or 0),
            station_id=station_id,
            type=type,
            data=ocpi.dumps(data),
            created_ms=now_ms,
            exp_ms=now_ms + min(self.timeout_ms, LIFE_MAX_MS),
            state="pending",
            **asker,
        )
        db.add(command)
        db.flush()
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

    def on_result(
        self, db: Db, station_id: str, record: messages.ResultRecord, now_ms: int
    ) -> None:
        command = db.get(Command, record.command_id)
        if command is None or command.station_id != station_id or command.result is not None:
            return
        in_time = command.state == "pending"
        command.result = record.result
        command.session_id = record.session_id
        if in_time:
            command.state = "done"
            self._reservation_result(db, command)
            self._tell(db, command, record.result, now_ms)
        elif record.result == "ACCEPTED":
            self._undo(db, command, now_ms)

    def on_health(self, db: Db, station_id: str) -> None:
        for command in db.scalars(
            select(Command).where(
                Command.station_id == station_id,
                Command.state == "pending",
                Command.type == "GET_HEALTH",
            )
        ):
            command.state = "done"

    def on_release(
        self, db: Db, station_id: str, record: messages.ReleaseRecord, now_ms: int
    ) -> None:
        row = db.get(Reservation, record.reservation_id)
        if row is None or row.station_id != station_id or record.cause == "replaced":
            return
        told = row.accepted
        row.accepted = False
        if told and record.cause == "cancelled_by_cpo":
            outbox.tell_result(
                db,
                row.party_id,
                f"{row.id}/{now_ms}",
                row.response_url,
                "CANCELED_RESERVATION",
                now_ms,
                now_ms + self.timeout_ms,
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

    def expire(self, db: Db, now_ms: int) -> bool:
        """Commands past their time become TIMEOUT. True if there were any."""
        late = db.scalars(
            select(Command).where(Command.state == "pending", Command.exp_ms <= now_ms)
        ).all()
        for command in late:
            command.state = "timeout"
            self._tell(db, command, "TIMEOUT", now_ms)
        return bool(late)

    def _tell(self, db: Db, command: Command, result: str, now_ms: int) -> None:
        if command.response_url is not None and command.party_id is not None:
            deadline_ms = command.created_ms + self.timeout_ms
            outbox.tell_result(
                db, command.party_id, command.id, command.response_url, result, now_ms, deadline_ms
            )

    def _reservation_result(self, db: Db, command: Command) -> None:
        row = db.get(Reservation, command.reservation_id) if command.reservation_id else None
        if row is None or command.type != "RESERVE_NOW" or command.result != "ACCEPTED":
            return
        row.accepted = True
        row.evse = ocpi.loads(command.data)["evse"]
        row.response_url = command.response_url or row.response_url

    def _undo(self, db: Db, command: Command, now_ms: int) -> None:
        if command.type == "RESERVE_NOW":
            data = {"reservation_id": ocpi.loads(command.data)["reservation_id"], "by": "cpo"}
            self.queue(db, command.station_id, "CANCEL_RESERVATION", data, now_ms)
        elif command.type == "START_SESSION" and command.session_id:
            data = {"session_id": command.session_id}
            self.queue(db, command.station_id, "STOP_SESSION", data, now_ms)
