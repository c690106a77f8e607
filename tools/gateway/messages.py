"""The vocabulary of uplink v1 as models: headers, records, commands. See UPLINK.md.

Purpose: the one description from which the gateway validates what boards send and from which the
JSON Schemas in ``schemas/`` are written.
Theory: integers only, strict types (``true`` is no integer, ``"1"`` neither). Unknown fields are
ignored, unknown record types are stored and not read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter

from tools.gateway.board_config import BoardConfig

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
JournalId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
Id36 = Annotated[str, Field(min_length=1, max_length=36)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Positive = Annotated[int, Field(ge=1, lt=2**53)]
Evse = Annotated[int, Field(ge=1, le=99)]
Base64 = Annotated[str, Field(min_length=4, max_length=900, pattern=r"^[A-Za-z0-9+/]+={0,2}$")]
RowName = Annotated[str, Field(pattern=r"^([0-9a-f]{26})?$")]
Short = Annotated[str, Field(min_length=1, max_length=64)]
Serial = Annotated[str, Field(max_length=64)] | None
Register = Count | None  # null: no reading yet, on a board that does not require a meter
Moment = Annotated[
    list[Count], Field(min_length=2, max_length=2, description="[boot, up_ms]")
]

Status = Literal[
    "AVAILABLE", "BLOCKED", "CHARGING", "INOPERATIVE", "OUTOFORDER", "PLANNED", "REMOVED",
    "RESERVED", "UNKNOWN",
]
TokenType = Literal["AD_HOC_USER", "APP_USER", "OTHER", "RFID"]
AuthMethod = Literal["AUTH_REQUEST", "COMMAND", "WHITELIST"]
AllowedType = Literal["ALLOWED", "BLOCKED", "EXPIRED", "NO_CREDIT", "NOT_ALLOWED"]
CommandResultType = Literal[
    "ACCEPTED", "CANCELED_RESERVATION", "EVSE_OCCUPIED", "EVSE_INOPERATIVE", "FAILED",
    "NOT_SUPPORTED", "REJECTED", "TIMEOUT", "UNKNOWN_RESERVATION",
]


class Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Token(Wire):
    country_code: Annotated[str, Field(min_length=2, max_length=2)]
    party_id: Annotated[str, Field(min_length=1, max_length=3)]
    type: TokenType
    uid: Id36
    group_id: Id36 | None = None


class Slot(Wire):
    """A booking as the board holds it. Who may use it: `tokens`, each by card, and over OCPI where
    `remote`."""

    booking_id: Id36
    start_ms: Positive
    end_ms: Positive
    guard_ms: Count = 0
    early_ms: Count = 0
    late_ms: Count = 0
    noshow_ms: Positive | None = None
    tokens: Annotated[list[Token], Field(min_length=1, max_length=3)]
    remote: bool = False
    authorization_reference: Id36 | None = None


# --- headers


class Clock(Wire):
    """`unix_ms` and `err_ms` are absent while the state is ``unset``."""

    state: Literal["unset", "holdover", "synced"]
    unix_ms: Positive | None = None
    err_ms: Count | None = None


class Live(Wire):
    status: Status
    session: Id36 | None = None
    wh: Count | None = None
    w: int | None = None
    plugged: bool | None = None
    time_unknown: bool | None = None
    until_ms: Positive | None = None


class Authorize(Wire):
    evse: Evse
    type: TokenType
    uid: Id36


class Tokens(Wire):
    """The whitelist at the board; `to` and `after` while a sync is on its way."""

    v: Count
    n: Count
    to: Positive | None = None
    after: RowName = ""


EvseKey = Annotated[str, Field(pattern=r"^[1-9][0-9]?$")]


class Flow(Wire):
    """Of a session, what changes by itself."""

    wh: Count
    w: int | None = None


class BriefHeader(Wire):
    """A picture that differs from the last whole one in what flows only. No records follow."""

    v: Literal[1]
    kid: Count
    sid: Hex32
    up_ms: Count
    seq: Positive
    live: dict[EvseKey, Flow] = Field(default_factory=dict)


class UpHeader(Wire):
    v: Literal[1]
    kid: Count
    sid: Hex32
    boot: Count
    up_ms: Count
    clock: Clock
    journal: JournalId
    first: Positive
    prev: Hex64
    seq: Positive
    head: Hex64
    live: dict[EvseKey, Live] = Field(default_factory=dict)
    authorize: Authorize | None = None
    health: dict[str, Any] | None = None
    tokens: Tokens | None = None


def is_brief(header: Any) -> bool:
    """A header without a journal is a brief one."""
    return isinstance(header, dict) and "journal" not in header


UP: TypeAdapter[UpHeader | BriefHeader] = TypeAdapter(
    Annotated[
        Annotated[UpHeader, Tag("whole")] | Annotated[BriefHeader, Tag("brief")],
        Discriminator(lambda header: "brief" if is_brief(header) else "whole"),
    ]
)


# --- records


class Record(Wire):
    boot: Count
    up_ms: Count


class BootEvse(Wire):
    evse: Evse
    meter: Short
    phases: Annotated[int, Field(ge=1, le=3)]
    max_a: Positive
    lost_max_wh: Count | None = None


class BootRecord(Record):
    t: Literal["boot"]
    fw: Short
    cause: Literal["power", "watchdog", "panic", "error", "soft", "hard", "update", "unknown"]
    slot: Annotated[str, Field(max_length=64)]
    board: Short
    evses: list[BootEvse]
    alive_ms: Count | None = None


class TimeRecord(Record):
    t: Literal["time"]
    unix_ms: Positive
    err_ms: Count
    step: bool = False


class StatusRecord(Record):
    t: Literal["status"]
    evse: Evse
    status: Status
    plugged: bool
    session_id: Id36 | None = None


class ReserveRecord(Record):
    t: Literal["reserve"]
    evse: Evse
    reservation_id: Id36
    session_id: Id36
    token: Token
    expiry_ms: Positive
    authorization_reference: Id36 | None = None
    command_id: Hex32 | None = None


class ReleaseRecord(Record):
    t: Literal["release"]
    evse: Evse
    reservation_id: Id36
    session_id: Id36
    cause: Literal["used", "expired", "cancelled_by_emsp", "cancelled_by_cpo", "replaced"]


class StartRecord(Record):
    t: Literal["start"]
    evse: Evse
    session_id: Id36
    token: Token | None
    auth_method: AuthMethod | None
    source: Literal["card", "remote", "plug_in", "free_vend"]
    register_wh: Register
    serial: Serial
    epoch: Count
    outside_wh: Count
    stale: bool = False
    signs: bool = False
    authorization_reference: Id36 | None = None
    reservation_id: Id36 | None = None
    booking_id: Id36 | None = None
    until_ms: Positive | None = None
    command_id: Hex32 | None = None


class PeriodRecord(Record):
    t: Literal["period"]
    evse: Evse
    session_id: Id36
    kind: Literal["charging", "not_requesting", "not_offered"]
    from_: Moment = Field(alias="from")
    to: Moment
    wh: Count
    total_wh: Count
    register_wh: Register
    max_w: int | None = None
    next: Literal["charging", "not_requesting", "not_offered"] | None = None


class StopRecord(Record):
    t: Literal["stop"]
    evse: Evse
    session_id: Id36
    cause: Literal[
        "local", "remote", "unplugged", "emergency", "meter_lost", "power_loss", "operator",
        "booking_ended", "fault",
    ]
    at: Moment
    total_wh: Count
    register_wh: Register
    unobserved_wh: Count
    token: Token | None = None
    command_id: Hex32 | None = None


class ResultRecord(Record):
    t: Literal["result"]
    command_id: Hex32
    type: Short
    result: CommandResultType
    evse: Evse | None = None
    session_id: Id36 | None = None
    exp: Positive | None = None
    digest: Annotated[str, Field(max_length=64)] | None = None
    kid: Positive | None = None
    nonce: Hex64 | None = None


class MeterRecord(Record):
    t: Literal["meter"]
    evse: Evse
    what: Literal[
        "found", "serial", "rollback", "rollover", "jump", "gap", "lost", "back", "frozen",
        "glitch", "outside",
    ]
    serial: Serial
    epoch: Count
    before_wh: Count | None
    after_wh: Count | None
    outside_wh: Count
    unobserved_wh: Count
    export_wh: Count | None = None
    power_w: int | None = None
    count: Positive | None = None


class ExportRecord(Record):
    """What flowed back: a register and an account of its own, never part of import."""

    t: Literal["export"]
    evse: Evse
    what: Literal["found", "counted", "rollback", "jump", "gap"]
    session_id: Id36 | None
    serial: Serial
    before_wh: Count | None
    after_wh: Count
    wh: Count
    unobserved_wh: Count


class RefusedRecord(Record):
    t: Literal["refused"]
    what: Literal["card", "command", "link", "message"]
    why: Short
    count: Positive
    evse: Evse | None = None


class EventRecord(Record):
    t: Literal["event"]


class ResumedEvent(EventRecord):
    what: Literal["resumed"]
    evse: Evse
    session_id: Id36
    resumes: Positive


class StoppingEvent(EventRecord):
    what: Literal["stopping"]
    evse: Evse
    session_id: Id36
    cause: Short
    token: Token | None = None


class TornTailEvent(EventRecord):
    what: Literal["torn_tail"]
    bytes: Count


class AvailabilityEvent(EventRecord):
    what: Literal["availability"]
    evse: Evse
    operative: bool


class FaultEvent(EventRecord):
    what: Literal["fault", "fault_cleared"]
    evse: Evse
    fault: Short


class SupervisorEvent(EventRecord):
    what: Literal["supervisor"]
    task: Short


class ConfigEvent(EventRecord):
    what: Literal["config"]
    outcome: Literal["kept", "refused", "rolled_back"]
    why: Annotated[str, Field(min_length=1, max_length=160)] | None = None


class FlashSlowEvent(EventRecord):
    """A write of the journal took this long: twice as long as what was told before."""

    what: Literal["flash_slow"]
    ms: Positive


class JournalNewEvent(EventRecord):
    what: Literal["journal_new"]
    why: Short


class RestoredEvent(EventRecord):
    """A file that was lost came back from its second copy."""

    what: Literal["restored"]
    file: Short


class LostRecord(Record):
    t: Literal["lost"]
    class_: Annotated[str | int, Field(alias="class")]
    count: Positive | None = None  # absent: of a whole journal, nobody knows how many
    journal: JournalId | None = None
    first: Positive | None = None
    last: Positive | None = None


class SignedRecord(Record):
    """A piece of the record that the meter signed, or why there is none."""

    t: Literal["signed"]
    evse: Evse
    session_id: Id36
    nature: Literal["start", "end"]
    piece: Positive | None = None
    of: Positive | None = None
    data: Base64 | None = None
    public_key: Base64 | None = None
    failed: Short | None = None


class BookingsEvent(EventRecord):
    """The slots of an EVSE go from version `base` (0: from none) to `version`."""

    what: Literal["bookings"]
    evse: Evse
    base: Count
    version: Positive
    drop: list[Id36] = Field(default_factory=list)


class BookedEvent(EventRecord):
    what: Literal["booked"]
    evse: Evse
    slot: Slot


class UnbookedEvent(EventRecord):
    what: Literal["unbooked"]
    evse: Evse
    booking_id: Id36
    cause: Literal["no_show", "over"]


class AliveEvent(EventRecord):
    what: Literal["alive"]


class ReaderEvent(EventRecord):
    what: Literal["reader_lost", "reader_back"]


Event = Annotated[
    ResumedEvent
    | StoppingEvent
    | TornTailEvent
    | AvailabilityEvent
    | FaultEvent
    | SupervisorEvent
    | ConfigEvent
    | FlashSlowEvent
    | JournalNewEvent
    | RestoredEvent
    | BookingsEvent
    | BookedEvent
    | UnbookedEvent
    | AliveEvent
    | ReaderEvent,
    Field(discriminator="what"),
]

RECORDS: dict[str, TypeAdapter[Any]] = {
    "boot": TypeAdapter(BootRecord),
    "time": TypeAdapter(TimeRecord),
    "status": TypeAdapter(StatusRecord),
    "reserve": TypeAdapter(ReserveRecord),
    "release": TypeAdapter(ReleaseRecord),
    "start": TypeAdapter(StartRecord),
    "period": TypeAdapter(PeriodRecord),
    "stop": TypeAdapter(StopRecord),
    "result": TypeAdapter(ResultRecord),
    "meter": TypeAdapter(MeterRecord),
    "export": TypeAdapter(ExportRecord),
    "refused": TypeAdapter(RefusedRecord),
    "event": TypeAdapter(Event),
    "lost": TypeAdapter(LostRecord),
    "signed": TypeAdapter(SignedRecord),
}


# --- commands


class ReserveNowData(Wire):
    evse: Evse
    reservation_id: Id36
    token: Token
    expiry_ms: Positive
    authorization_reference: Id36 | None = None
    session_id: Id36 | None = None


class CancelReservationData(Wire):
    reservation_id: Id36
    by: Literal["emsp", "cpo", "move"] = "emsp"


class StartSessionData(Wire):
    evse: Evse
    token: Token
    authorization_reference: Id36 | None = None
    session_id: Id36 | None = None


class StopSessionData(Wire):
    session_id: Id36


class UnlockConnectorData(Wire):
    evse: Evse


class AuthorizeData(Wire):
    evse: Evse
    uid: Id36
    allowed: AllowedType
    token: Token | None = None
    auth_method: AuthMethod | None = None
    authorization_reference: Id36 | None = None


class SyncTokensData(Wire):
    """A part of the whitelist's change from one version to another."""

    from_: Annotated[Count, Field(alias="from")]
    to: Positive
    after: RowName
    rows: Annotated[str, Field(max_length=1500, pattern=r"^[A-Za-z0-9+/]*=*$")]
    last: bool = False


class SetAvailabilityData(Wire):
    evse: Evse
    operative: bool


class SetBookingsData(Wire):
    """Changes to an EVSE's slots from version `base` to `version`; base 0 begins with none."""

    evse: Evse
    base: Count
    version: Positive
    put: Annotated[list[Slot], Field(max_length=2)] = Field(default_factory=list)
    drop: Annotated[list[Id36], Field(max_length=16)] = Field(default_factory=list)


class Login(Wire):
    user: Annotated[str, Field(max_length=64)] | None = None
    password: Annotated[str, Field(max_length=64)] | None = None


class Wifi(Wire):
    ssid: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    password: Annotated[str, Field(max_length=64)] | None = None


class Tls(Wire):
    """Base64 of DER, no PEM. A private key does not travel: a certificate is renewed for the key
    that the board has."""

    model_config = ConfigDict(extra="forbid")

    ca: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+=*$")] | None = None
    cert: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+=*$")] | None = None


class Secrets(Wire):
    """Fields of secrets.json that are replaced. The station's key is none."""

    model_config = ConfigDict(extra="forbid")

    mqtt: Login | None = None
    wifi: Wifi | None = None
    tls: Tls | None = None


class SetConfigData(Wire):
    """At least one of both."""

    model_config = ConfigDict(hide_input_in_errors=True)

    config: BoardConfig | None = None
    secrets: Secrets | None = None


class RotateKeyData(Wire):
    kid: Positive
    nonce: Hex64


class NoData(Wire):
    pass


COMMANDS: dict[str, type[Wire]] = {
    "RESERVE_NOW": ReserveNowData,
    "CANCEL_RESERVATION": CancelReservationData,
    "START_SESSION": StartSessionData,
    "STOP_SESSION": StopSessionData,
    "UNLOCK_CONNECTOR": UnlockConnectorData,
    "AUTHORIZE": AuthorizeData,
    "SET_AVAILABILITY": SetAvailabilityData,
    "SET_BOOKINGS": SetBookingsData,
    "SYNC_TOKENS": SyncTokensData,
    "GET_HEALTH": NoData,
    "RESET": NoData,
    "SET_CONFIG": SetConfigData,
    "ROTATE_KEY": RotateKeyData,
}


class Command(Wire):
    id: Hex32
    type: Short
    exp: Positive
    data: dict[str, Any]


class DownHeader(Wire):
    v: Literal[1]
    kid: Count
    sid: Hex32
    n: Positive
    unix_ms: Positive
    re: Count | None = None
    journal: JournalId | None = None
    ack: Count | None = None
    brief_s: Positive | None = None
    commands: Annotated[list[Command], Field(max_length=4)] = Field(default_factory=list)
