"""What the gateway remembers: the tables, and nothing else.

Purpose: one durable store under everything. Theory: the `record` table is the truth of the
southbound side; sessions, EVSE states and CDRs are made from it and can be made again, except
that a CDR, once made, is kept as it was sent. Objects are kept as their OCPI JSON text beside the
columns by which they are looked up.
Limits: a synchronous engine with short transactions, called from one event loop: no two writers
ever meet. That is right for SQLite and some hundred boards, and the first thing to change for
thousands.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    Engine,
    ForeignKey,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker


class Base(DeclarativeBase):
    pass


# --- southbound


class Station(Base):
    __tablename__ = "station"

    id: Mapped[str] = mapped_column(primary_key=True)
    journal: Mapped[str | None]  # the life of the journal that speaks now
    sid: Mapped[str | None]
    boot: Mapped[int] = mapped_column(default=0)
    up_ms: Mapped[int] = mapped_column(default=-1)
    n: Mapped[int] = mapped_column(default=0)
    link: Mapped[str | None]  # "mqtt" or "http"
    clock: Mapped[str | None] = mapped_column(Text)
    health: Mapped[str | None] = mapped_column(Text)
    last_seen_ms: Mapped[int | None]
    online: Mapped[bool] = mapped_column(default=False)
    quarantine: Mapped[str | None]  # why; set by a fork, lifted by an operator
    pushed_ms: Mapped[int] = mapped_column(default=0)


class StationKey(Base):
    """A key that followed the configuration's by a rotation."""

    __tablename__ = "station_key"

    station_id: Mapped[str] = mapped_column(primary_key=True)
    kid: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str]  # 64 hex digits
    confirmed: Mapped[bool] = mapped_column(default=False)  # the board has spoken under it
    answers: Mapped[int] = mapped_column(default=0)  # made while it was not


class Journal(Base):
    __tablename__ = "journal"
    __table_args__ = (UniqueConstraint("station_id", "journal"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    station_id: Mapped[str] = mapped_column(ForeignKey("station.id"))
    journal: Mapped[str]
    last: Mapped[int] = mapped_column(default=0)  # all up to here is stored, or is a gap
    link: Mapped[bytes | None] = mapped_column(LargeBinary)  # link(last); None after a gap
    first_seen_ms: Mapped[int]


class Record(Base):
    __tablename__ = "record"
    __table_args__ = (
        UniqueConstraint("station_id", "journal", "seq"),
        Index("record_session", "session_id"),
        Index("record_type", "station_id", "t", "boot"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    station_id: Mapped[str] = mapped_column(ForeignKey("station.id"))
    journal: Mapped[str]
    seq: Mapped[int]
    link: Mapped[bytes] = mapped_column(LargeBinary)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    t: Mapped[str | None]  # None: not a record this version can read
    boot: Mapped[int | None]
    up_ms: Mapped[int | None]
    session_id: Mapped[str | None]
    received_ms: Mapped[int]


class Alarm(Base):
    """Gaps, forks, unreadable records and clocks put right: what an operator must know."""

    __tablename__ = "alarm"

    id: Mapped[int] = mapped_column(primary_key=True)
    station_id: Mapped[str]
    kind: Mapped[str]  # "gap", "fork", "unreadable", "clock_step"
    journal: Mapped[str]
    first: Mapped[int]
    last: Mapped[int]  # 0: nobody knows
    text: Mapped[str] = mapped_column(Text)
    at_ms: Mapped[int]


class Command(Base):
    """A command for a board, durable until its result or its expiry."""

    __tablename__ = "command"

    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(index=True)  # order of arrival
    station_id: Mapped[str] = mapped_column(index=True)
    type: Mapped[str]
    data: Mapped[str] = mapped_column(Text)
    exp_ms: Mapped[int]
    created_ms: Mapped[int]
    state: Mapped[str] = mapped_column(default="pending")  # pending, done, timeout
    result: Mapped[str | None]
    session_id: Mapped[str | None]
    # who asked, when it came over OCPI
    party_id: Mapped[int | None]
    sender: Mapped[str | None]  # "NL-EMS"
    response_url: Mapped[str | None]
    reservation_id: Mapped[str | None]  # the gateway's
    why: Mapped[str | None]  # "undo", "move": the gateway asks on its own account


# --- projection


class Evse(Base):
    """The newest word of the board about an EVSE, and what OCPI is told."""

    __tablename__ = "evse"

    uid: Mapped[str] = mapped_column(primary_key=True)
    location_id: Mapped[str]
    station_id: Mapped[str] = mapped_column(index=True)
    evse: Mapped[int]
    board_status: Mapped[str] = mapped_column(default="UNKNOWN")
    plugged: Mapped[bool] = mapped_column(default=False)
    boot: Mapped[int] = mapped_column(default=0)
    up_ms: Mapped[int] = mapped_column(default=-1)
    power_w: Mapped[int | None]
    time_unknown: Mapped[bool] = mapped_column(default=False)  # reserved, nobody knows how long
    status: Mapped[str] = mapped_column(default="UNKNOWN")
    last_updated_ms: Mapped[int]


class LocationRow(Base):
    __tablename__ = "location"

    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]  # of its configuration: a changed one is news
    last_updated_ms: Mapped[int]


class TariffRow(Base):
    __tablename__ = "tariff"

    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    last_updated_ms: Mapped[int]


class SessionRow(Base):
    __tablename__ = "session"

    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(index=True)  # order of creation
    station_id: Mapped[str] = mapped_column(index=True)  # where it is now
    stations: Mapped[str]  # who may speak of it: its first, and where its reservation was moved to
    evse_uid: Mapped[str | None] = mapped_column(index=True)
    status: Mapped[str]
    owner: Mapped[str | None] = mapped_column(index=True)  # "NL-EMS"; None: free-vend
    live_wh: Mapped[int] = mapped_column(default=0)
    snapshot: Mapped[str] = mapped_column(Text)  # location and tariff as they were at the start
    object: Mapped[str | None] = mapped_column(Text)  # None: start time not known yet
    end_cause: Mapped[str | None]
    last_updated_ms: Mapped[int]


class CdrRow(Base):
    __tablename__ = "cdr"

    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(index=True)
    session_id: Mapped[str]
    owner: Mapped[str] = mapped_column(index=True)
    object: Mapped[str] = mapped_column(Text)
    last_updated_ms: Mapped[int]


class AwaitedSignature(Base):
    """A finished session whose CDR waits for the meter's signed record."""

    __tablename__ = "awaited_signature"

    session_id: Mapped[str] = mapped_column(primary_key=True)
    until_ms: Mapped[int] = mapped_column(index=True)


# --- northbound


class Party(Base):
    """A registered platform and how to call it."""

    __tablename__ = "party"

    id: Mapped[int] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(unique=True)  # of the token it calls us with
    token: Mapped[str]  # the token we call it with
    url: Mapped[str]
    roles: Mapped[str] = mapped_column(Text)
    endpoints: Mapped[str] = mapped_column(Text)


class DeadToken(Base):
    """A registration token that has done its work."""

    __tablename__ = "dead_token"

    token_hash: Mapped[str] = mapped_column(primary_key=True)


class TokenRow(Base):
    """A driver's Token. `pushed`: it came over the tokens module, else with a command."""

    __tablename__ = "token"

    owner: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(primary_key=True)  # lower case
    contract_id: Mapped[str]
    pushed: Mapped[bool]
    object: Mapped[str] = mapped_column(Text)
    last_updated_ms: Mapped[int]


class ListedToken(Base):
    """A card as the boards' whitelists have it, and when that last changed (see whitelist.py)."""

    __tablename__ = "listed_token"

    owner: Mapped[str] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(primary_key=True)  # upper case
    kind: Mapped[str]  # "A" at once, "O" offline only, "-" not on the list
    group: Mapped[str]  # "" or 8 characters
    change: Mapped[int] = mapped_column(index=True)


class StationList(Base):
    """The whitelist at a board: the version that it told, and the sync that is on its way."""

    __tablename__ = "station_list"

    station_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(default=0)
    since: Mapped[int] = mapped_column(default=0)
    target: Mapped[int] = mapped_column(default=0)  # equal to `version`: none is on its way
    started_ms: Mapped[int] = mapped_column(default=0)
    rows: Mapped[int] = mapped_column(default=0)  # as told


class Reservation(Base):
    """An eMSP's reservation_id and the one the board knows instead. Without a sender: a board
    holds it, and this database does not know for whom (it was restored from a backup)."""

    __tablename__ = "reservation"

    id: Mapped[str] = mapped_column(primary_key=True)  # the gateway's
    sender: Mapped[str | None]
    emsp_id: Mapped[str | None]  # lower case
    location_id: Mapped[str]
    station_id: Mapped[str]
    evse: Mapped[int]
    created_ms: Mapped[int]
    party_id: Mapped[int | None]
    response_url: Mapped[str | None]
    named: Mapped[bool]  # the eMSP has named the EVSE: it does not move
    accepted: Mapped[bool] = mapped_column(default=False)  # in force at (station_id, evse)
    moving: Mapped[bool] = mapped_column(default=False)  # asked for at another spot
    wish: Mapped[str | None] = mapped_column(Text)  # data of the RESERVE_NOW accepted last
    session_id: Mapped[str | None] = mapped_column(index=True)


class BookingLocationRow(Base):
    __tablename__ = "booking_location"

    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    last_updated_ms: Mapped[int]


class BookingRow(Base):
    """A booking: what OCPI is told, and what a board is to hold."""

    __tablename__ = "booking"
    __table_args__ = (UniqueConstraint("owner", "request_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(index=True)  # order of creation
    owner: Mapped[str]  # "NL-EMS"
    request_id: Mapped[str]  # lower case
    booking_location_id: Mapped[str]
    evse_uid: Mapped[str] = mapped_column(index=True)
    status: Mapped[str] = mapped_column(index=True)
    start_ms: Mapped[int]
    end_ms: Mapped[int]
    slot: Mapped[str] = mapped_column(Text)
    object: Mapped[str] = mapped_column(Text)
    last_updated_ms: Mapped[int]


class BookingHeld(Base):
    """A slot that a board said it holds."""

    __tablename__ = "booking_held"

    evse_uid: Mapped[str] = mapped_column(primary_key=True)
    booking_id: Mapped[str] = mapped_column(primary_key=True)
    slot: Mapped[str] = mapped_column(Text)


class BookingSync(Base):
    """How far an EVSE's list of slots is known at its board."""

    __tablename__ = "booking_sync"

    evse_uid: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(default=0)  # 0: unknown, begin anew
    command_id: Mapped[str | None]  # the SET_BOOKINGS on its way


class Outbox(Base):
    """What a party must hear. Sessions and EVSEs: one row for ever, holding what the party has."""

    __tablename__ = "outbox"
    __table_args__ = (UniqueConstraint("party_id", "kind", "key"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    party_id: Mapped[int] = mapped_column(index=True)
    kind: Mapped[str]  # "session", "evse", "cdr", "command_result", "booking"...
    key: Mapped[str]
    url: Mapped[str | None]
    body: Mapped[str | None] = mapped_column(Text)
    pending: Mapped[bool] = mapped_column(default=True, index=True)
    revision: Mapped[int] = mapped_column(default=1)
    peer: Mapped[str | None] = mapped_column(Text)  # the object as the party has it
    unsure: Mapped[bool] = mapped_column(default=False)  # a request went out, its end is unknown
    attempts: Mapped[int] = mapped_column(default=0)
    next_ms: Mapped[int] = mapped_column(default=0)
    deadline_ms: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)


def open_store(url: str) -> sessionmaker[Session]:
    """Create what is missing. SQLite commits are flushed to the disk: an ack is a promise."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        _sqlite_settings(engine)
    Base.metadata.create_all(engine)
    return sessionmaker(engine, expire_on_commit=False)


def put_right(db: Session, now_ms: int, life_ms: int, retry_ms: int) -> None:
    """The gateway's clock was ahead: whatever waits for a moment that was near then and is far off
    now waits no longer. What was told stays as it was; `last_updated` never goes back."""
    late = Outbox.next_ms > now_ms + retry_ms
    db.execute(update(Outbox).where(Outbox.pending, late).values(next_ms=now_ms))
    late = Outbox.deadline_ms > now_ms + life_ms
    db.execute(update(Outbox).where(Outbox.pending, late).values(deadline_ms=now_ms))
    late = Command.exp_ms > now_ms + life_ms
    db.execute(update(Command).where(Command.state == "pending", late).values(exp_ms=now_ms))
    db.execute(update(Station).where(Station.last_seen_ms > now_ms).values(last_seen_ms=now_ms))
    db.execute(update(Station).where(Station.pushed_ms > now_ms).values(pushed_ms=0))


def _sqlite_settings(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection, _record) -> None:  # type: ignore[no-untyped-def]
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA busy_timeout=5000")
        cursor.close()
