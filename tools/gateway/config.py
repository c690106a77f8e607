"""The gateway's configuration: one JSON file, checked before anything starts.

Purpose: say in one place what a CPO decides: who it is, which EVSE is which station's, which
tariffs hold, who may register. README.md describes it for people.
Theory: OCPI objects are written as OCPI writes them; what the gateway itself knows (owner, status,
last_updated) is left out. An EVSE names its board in `board`; its uid never derives from a board,
because boards are replaced and uids are for ever.
Limits: tariffs are prices per kWh without restrictions; anything else is refused, not ignored.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from tools.gateway import ocpi, ocpi_bookings
from tools.gateway.uplink import is_station_id

EPOCH = "1970-01-01T00:00:00Z"


class ConfigError(Exception):
    """Names the field, the value and the remedy."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Party(Strict):
    """The CPO."""

    country_code: ocpi.Ci2
    party_id: ocpi.Ci3
    name: Annotated[str, Field(min_length=1, max_length=100)]


class Mqtt(Strict):
    """The broker. Without it, boards reach the gateway over HTTP only."""

    host: str
    port: Annotated[int, Field(ge=1, le=65535)] = 8883
    username: str | None = None
    password: str | None = None
    tls: bool = True
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    keepalive_s: Annotated[int, Field(ge=5, le=3600)] = 30


class Station(Strict):
    """`chain` is there once the key is not the one that the board's journal began with."""

    model_config = ConfigDict(hide_input_in_errors=True)

    kid: Annotated[int, Field(ge=0)] = 1
    key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    chain: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None

    @property
    def key_bytes(self) -> bytes:
        return bytes.fromhex(self.key)


class Board(Strict):
    station_id: str
    evse: Annotated[int, Field(ge=1, le=99)]


class ConnectorConfig(ocpi.Connector):
    last_updated: ocpi.DateTime = EPOCH


class EvseConfig(ocpi.Evse):
    status: ocpi.Status = "UNKNOWN"
    connectors: Annotated[list[ConnectorConfig], Field(min_length=1)]  # type: ignore[assignment]
    last_updated: ocpi.DateTime = EPOCH
    board: Board


class LocationConfig(ocpi.Location):
    country_code: ocpi.Ci2 = "??"
    party_id: ocpi.Ci3 = "?"
    evses: Annotated[list[EvseConfig], Field(min_length=1)]  # type: ignore[assignment]
    last_updated: ocpi.DateTime = EPOCH


class TariffConfig(ocpi.Tariff):
    country_code: ocpi.Ci2 = "??"
    party_id: ocpi.Ci3 = "?"
    last_updated: ocpi.DateTime = EPOCH


class BookingLocationConfig(Strict):
    """EVSEs that can be booked, under one set of terms. With several EVSEs a booking is open:
    the gateway assigns one."""

    id: ocpi.Ci36
    location_id: ocpi.Ci36
    evse_uids: Annotated[list[ocpi.Ci36], Field(min_length=1)]
    terms: ocpi_bookings.BookingTerms
    tariff_ids: list[ocpi.Ci36] | None = None
    timeslot_increment_minutes: Annotated[int, Field(ge=1, le=1440)] = 15
    horizon_days: Annotated[int, Field(ge=1, le=90)] = 14
    guard_minutes: Annotated[int, Field(ge=0, le=120)] = 5
    """Before a slot nobody else starts, and who charges is stopped."""


class Config(Strict):
    party: Party
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8020
    base_url: str | None = None
    database: str = "sqlite:///gateway.sqlite3"
    mqtt: Mqtt | None = None
    stations: dict[str, Station]
    locations: Annotated[list[LocationConfig], Field(min_length=1)]
    tariffs: list[TariffConfig] = Field(default_factory=list)
    booking_locations: list[BookingLocationConfig] = Field(default_factory=list)
    currency: ocpi.Str3 = "EUR"
    registration_tokens: list[
        Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{8,64}$")]
    ] = Field(default_factory=list)
    admin_token: Annotated[str, Field(min_length=8)] | None = None
    command_timeout_s: Annotated[int, Field(ge=1, le=3600)] = 30
    command_repeat_s: Annotated[float, Field(gt=0)] = 5.0
    authorize_timeout_s: Annotated[float, Field(gt=0, le=14)] = 8.0
    whitelist_every_s: Annotated[int, Field(ge=0)] = 300
    offline_after_s: Annotated[int, Field(ge=1)] = 180
    brief_s: Annotated[int, Field(ge=0, le=960)] = 960
    """Boards may send brief pictures, with a whole message at least so often; 0: none."""
    page_limit: Annotated[int, Field(ge=1, le=1000)] = 100
    http_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    retry_first_s: Annotated[float, Field(gt=0)] = 1.0
    retry_max_s: Annotated[float, Field(gt=0)] = 900.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        for station_id in self.stations:
            if not is_station_id(station_id):
                raise ValueError(
                    f"stations: {station_id!r} is no station id; use 1 to 36 of A-Z a-z 0-9 - _"
                )
        tariffs = {tariff.id.lower() for tariff in self.tariffs}
        for tariff in self.tariffs:
            tariff.country_code = self.party.country_code
            tariff.party_id = self.party.party_id
            _only_energy(tariff)
        uids: set[str] = set()
        boards: set[tuple[str, int]] = set()
        for location in self.locations:
            location.country_code = self.party.country_code
            location.party_id = self.party.party_id
            for evse in location.evses:
                where = f"locations: {location.id}: EVSE {evse.uid}"
                board = (evse.board.station_id, evse.board.evse)
                if board[0] not in self.stations:
                    raise ValueError(
                        f"{where}: board.station_id {board[0]!r} is not in stations; add its key"
                    )
                if board in boards:
                    raise ValueError(f"{where}: {board} is mapped twice; give each EVSE its own")
                if evse.uid.lower() in uids:
                    raise ValueError(f"{where}: uid is used twice; it must be unique for ever")
                boards.add(board)
                uids.add(evse.uid.lower())
                for connector in evse.connectors:
                    for tariff_id in connector.tariff_ids or []:
                        if tariff_id.lower() not in tariffs:
                            raise ValueError(
                                f"{where}: tariff_ids: {tariff_id!r} is not in tariffs; define it"
                            )
        self._bookings_fit(tariffs)
        return self

    def _bookings_fit(self, tariffs: set[str]) -> None:
        evses = {
            (location.id.lower(), evse.uid.lower())
            for location in self.locations
            for evse in location.evses
        }
        taken: set[str] = set()
        for bookable in self.booking_locations:
            where = f"booking_locations: {bookable.id}"
            for uid in bookable.evse_uids:
                if (bookable.location_id.lower(), uid.lower()) not in evses:
                    raise ValueError(
                        f"{where}: evse_uids: {uid!r} is no EVSE of {bookable.location_id!r}"
                    )
                if uid.lower() in taken:
                    raise ValueError(f"{where}: evse_uids: {uid!r} is there twice")
                taken.add(uid.lower())
            if bookable.terms.noshow_fee:
                raise ValueError(
                    f"{where}: terms.noshow_fee: true, and this version bills no fees; remove it"
                )
            for tariff_id in bookable.tariff_ids or []:
                if tariff_id.lower() not in tariffs:
                    raise ValueError(f"{where}: tariff_ids: {tariff_id!r} is not in tariffs")


def _only_energy(tariff: TariffConfig) -> None:
    plain = (
        len(tariff.elements) == 1
        and tariff.elements[0].restrictions is None
        and len(tariff.elements[0].price_components) == 1
        and tariff.elements[0].price_components[0].type == "ENERGY"
    )
    extra = [name for name in ("min_price", "max_price") if name in (tariff.model_extra or {})]
    if not plain or extra:
        raise ValueError(
            f"tariffs: {tariff.id}: only one ENERGY price without restrictions is billed by this "
            f"version{': remove ' + ', '.join(extra) if extra else '; simplify the tariff'}"
        )


def parse_config(data: Any) -> Config:
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            where = ".".join(str(part) for part in fault["loc"]) or "(whole file)"
            value = "" if "key" in where or "token" in where else f" (is {fault['input']!r:.80})"
            shown = "" if isinstance(fault["input"], dict) else value
            lines.append(f"{where}: {fault['msg']}{shown}")
        raise ConfigError("\n".join(lines)) from None


def load_config(path: Path) -> Config:
    """Raises ConfigError with one line per fault."""
    try:
        return parse_config(ocpi.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give --config") from None
    except ValueError as error:
        raise ConfigError(f"{path}: no JSON: {error}") from None


def energy_price(tariff: dict[str, Any]) -> tuple[Decimal, Decimal | None, int]:
    """(price per kWh, VAT percentage or None, step_size in Wh) of a tariff in its OCPI form."""
    component = tariff["elements"][0]["price_components"][0]
    vat = component.get("vat")
    return (
        Decimal(component["price"]),
        None if vat is None else Decimal(vat),
        max(1, int(component["step_size"])),
    )
