"""OCPI 2.2.1 objects as pydantic models, and how OCPI writes time, numbers and JSON.

Purpose: the gateway's only home of OCPI's shapes. Names and limits are the standard's
(release 2.2.1 with its documented corrections).
Theory: numbers are `Decimal` from the integer Wh to the text; JSON is read with exact decimals
and written as JSON numbers without float residue (12.345, never 12.344999). Unknown fields are
accepted and dropped. DateTime is UTC with ``Z`` and at most milliseconds; without a zone it is
UTC. Limits: fields of a Location that only a map needs (images, opening hours...) pass unread.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

VERSION = "2.2.1"

_DATETIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,5})?Z?\Z")


# --- time, numbers, JSON


def parse_datetime(text: str) -> int:
    """OCPI DateTime -> unix ms. Raises ValueError naming the text and the form."""
    if len(text) > 25 or _DATETIME.match(text) is None:
        raise ValueError(f"{text!r} is no OCPI DateTime; write it like 2026-01-31T12:00:00Z")
    moment = datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def format_datetime(unix_ms: int) -> str:
    """Unix ms -> OCPI DateTime with milliseconds, 24 characters."""
    seconds, millis = divmod(unix_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{millis:03d}Z"


def kwh(wh: int) -> Decimal:
    """Integer Wh -> kWh, exact."""
    return Decimal(wh).scaleb(-3)


def hours(duration_ms: int) -> Decimal:
    """Milliseconds -> hours with OCPI's 4 decimals."""
    return (Decimal(duration_ms) / 3_600_000).quantize(Decimal("0.0001"), ROUND_HALF_UP)


def _number(value: object) -> int | float:
    """A Decimal of at most 15 digits survives the way through a float's shortest text."""
    if not isinstance(value, Decimal):
        raise TypeError(f"{type(value).__name__} is not JSON")
    return int(value) if value == value.to_integral_value() else float(value)


def dumps(value: Any) -> str:
    return json.dumps(value, default=_number, separators=(",", ":"), ensure_ascii=False)


def loads(text: str | bytes) -> Any:
    """JSON with exact decimals. Raises ValueError on anything that is not JSON."""
    return json.loads(text, parse_float=Decimal, parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# --- types


def _datetime(text: str) -> str:
    parse_datetime(text)
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("only printable characters are allowed")
    return text


def _ci_string(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise ValueError("CiString: only printable ASCII is allowed")
    return text


DateTime = Annotated[str, AfterValidator(_datetime)]
Ci2 = Annotated[str, Field(min_length=2, max_length=2), AfterValidator(_ci_string)]
Ci3 = Annotated[str, Field(min_length=1, max_length=3), AfterValidator(_ci_string)]
Ci36 = Annotated[str, Field(min_length=1, max_length=36), AfterValidator(_ci_string)]
Ci48 = Annotated[str, Field(min_length=1, max_length=48), AfterValidator(_ci_string)]
Str2 = Annotated[str, Field(min_length=2, max_length=2), AfterValidator(_printable)]
Str3 = Annotated[str, Field(min_length=3, max_length=3), AfterValidator(_printable)]
Str10 = Annotated[str, Field(max_length=10), AfterValidator(_printable)]
Str45 = Annotated[str, Field(max_length=45), AfterValidator(_printable)]
Str64 = Annotated[str, Field(max_length=64), AfterValidator(_printable)]
Str255 = Annotated[str, Field(max_length=255), AfterValidator(_printable)]
Url = Annotated[str, StringConstraints(max_length=255, pattern=r"^https?://[^\s]+$")]
Amount = Annotated[Decimal, Field(ge=0)]

Status = Literal[
    "AVAILABLE", "BLOCKED", "CHARGING", "INOPERATIVE", "OUTOFORDER", "PLANNED", "REMOVED",
    "RESERVED", "UNKNOWN",
]
TokenType = Literal["AD_HOC_USER", "APP_USER", "OTHER", "RFID"]
WhitelistType = Literal["ALWAYS", "ALLOWED", "ALLOWED_OFFLINE", "NEVER"]
Role = Literal["CPO", "EMSP", "HUB", "NAP", "NSP", "OTHER", "SCSP"]
ProfileType = Literal["CHEAP", "FAST", "GREEN", "REGULAR"]
CommandType = Literal[
    "CANCEL_RESERVATION", "RESERVE_NOW", "START_SESSION", "STOP_SESSION", "UNLOCK_CONNECTOR"
]
CommandResponseType = Literal["NOT_SUPPORTED", "REJECTED", "ACCEPTED", "UNKNOWN_SESSION"]
Capability = Literal[
    "CHARGING_PROFILE_CAPABLE", "CHARGING_PREFERENCES_CAPABLE", "CHIP_CARD_SUPPORT",
    "CONTACTLESS_CARD_SUPPORT", "CREDIT_CARD_PAYABLE", "DEBIT_CARD_PAYABLE", "PED_TERMINAL",
    "REMOTE_START_STOP_CAPABLE", "RESERVABLE", "RFID_READER", "START_SESSION_CONNECTOR_REQUIRED",
    "TOKEN_GROUP_CAPABLE", "UNLOCK_CAPABLE",
]
ConnectorType = Literal[
    "CHADEMO", "CHAOJI", "DOMESTIC_A", "DOMESTIC_B", "DOMESTIC_C", "DOMESTIC_D", "DOMESTIC_E",
    "DOMESTIC_F", "DOMESTIC_G", "DOMESTIC_H", "DOMESTIC_I", "DOMESTIC_J", "DOMESTIC_K",
    "DOMESTIC_L", "DOMESTIC_M", "DOMESTIC_N", "DOMESTIC_O", "GBT_AC", "GBT_DC",
    "IEC_60309_2_single_16", "IEC_60309_2_three_16", "IEC_60309_2_three_32",
    "IEC_60309_2_three_64", "IEC_62196_T1", "IEC_62196_T1_COMBO", "IEC_62196_T2",
    "IEC_62196_T2_COMBO", "IEC_62196_T3A", "IEC_62196_T3C", "NEMA_5_20", "NEMA_6_30",
    "NEMA_6_50", "NEMA_10_30", "NEMA_10_50", "NEMA_14_30", "NEMA_14_50",
    "PANTOGRAPH_BOTTOM_UP", "PANTOGRAPH_TOP_DOWN", "TESLA_R", "TESLA_S",
]
ConnectorFormat = Literal["SOCKET", "CABLE"]
PowerType = Literal["AC_1_PHASE", "AC_2_PHASE", "AC_2_PHASE_SPLIT", "AC_3_PHASE", "DC"]


class Ocpi(BaseModel):
    model_config = ConfigDict(extra="ignore")

    def dump(self) -> dict[str, Any]:
        """As it goes on the wire: fields without a value are left out."""
        return self.model_dump(exclude_none=True)


class BusinessDetails(Ocpi):
    name: Annotated[str, Field(max_length=100), AfterValidator(_printable)]
    website: Url | None = None


# --- versions and credentials


class Version(Ocpi):
    version: str
    url: Url


class Endpoint(Ocpi):
    identifier: str
    role: Literal["SENDER", "RECEIVER"]
    url: Url


class VersionDetails(Ocpi):
    version: str
    endpoints: Annotated[list[Endpoint], Field(min_length=1)]


class CredentialsRole(Ocpi):
    role: Role
    business_details: BusinessDetails
    party_id: Ci3
    country_code: Ci2


class Credentials(Ocpi):
    token: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,64}$")]
    url: Url
    roles: Annotated[list[CredentialsRole], Field(min_length=1)]


# --- locations


class GeoLocation(Ocpi):
    latitude: Annotated[str, StringConstraints(pattern=r"^-?[0-9]{1,2}\.[0-9]{5,7}$")]
    longitude: Annotated[str, StringConstraints(pattern=r"^-?[0-9]{1,3}\.[0-9]{5,7}$")]


class Connector(Ocpi):
    id: Ci36
    standard: ConnectorType
    format: ConnectorFormat
    power_type: PowerType
    max_voltage: int
    max_amperage: int
    max_electric_power: int | None = None
    tariff_ids: list[Ci36] | None = None
    terms_and_conditions: Url | None = None
    last_updated: DateTime


class Evse(Ocpi):
    uid: Ci36
    evse_id: Ci48 | None = None
    status: Status
    capabilities: list[Capability] | None = None
    connectors: Annotated[list[Connector], Field(min_length=1)]
    floor_level: Annotated[str, Field(max_length=4)] | None = None
    coordinates: GeoLocation | None = None
    physical_reference: Annotated[str, Field(max_length=16)] | None = None
    last_updated: DateTime


class Location(Ocpi):
    model_config = ConfigDict(extra="allow")

    country_code: Ci2
    party_id: Ci3
    id: Ci36
    publish: bool
    name: Str255 | None = None
    address: Str255
    city: Str45
    postal_code: Str10 | None = None
    state: Str45 | None = None
    country: Str3
    coordinates: GeoLocation
    evses: list[Evse] = Field(default_factory=list)
    time_zone: Str255
    last_updated: DateTime


# --- tariffs


class PriceComponent(Ocpi):
    type: Literal["ENERGY", "FLAT", "PARKING_TIME", "TIME"]
    price: Amount
    vat: Amount | None = None
    step_size: Annotated[int, Field(ge=0)]


class TariffElement(Ocpi):
    price_components: Annotated[list[PriceComponent], Field(min_length=1)]
    restrictions: dict[str, Any] | None = None


class Tariff(Ocpi):
    model_config = ConfigDict(extra="allow")

    country_code: Ci2
    party_id: Ci3
    id: Ci36
    currency: Str3
    elements: Annotated[list[TariffElement], Field(min_length=1)]
    last_updated: DateTime


# --- tokens


class EnergyContract(Ocpi):
    supplier_name: Str64
    contract_id: Str64 | None = None


class Token(Ocpi):
    country_code: Ci2
    party_id: Ci3
    uid: Ci36
    type: TokenType
    contract_id: Ci36
    visual_number: Str64 | None = None
    issuer: Str64
    group_id: Ci36 | None = None
    valid: bool
    whitelist: WhitelistType
    language: Str2 | None = None
    default_profile_type: ProfileType | None = None
    energy_contract: EnergyContract | None = None
    last_updated: DateTime


AllowedType = Literal["ALLOWED", "BLOCKED", "EXPIRED", "NO_CREDIT", "NOT_ALLOWED"]


class LocationReferences(Ocpi):
    location_id: Ci36
    evse_uids: list[Ci36] = Field(default_factory=list)


class AuthorizationInfo(Ocpi):
    """The eMSP's answer in real time. `info`, a text for the driver, passes unread."""

    allowed: AllowedType
    token: Token
    location: LocationReferences | None = None
    authorization_reference: Ci36 | None = None


# --- commands


class CancelReservation(Ocpi):
    response_url: Url
    reservation_id: Ci36


class ReserveNow(Ocpi):
    response_url: Url
    token: Token
    expiry_date: DateTime
    reservation_id: Ci36
    location_id: Ci36
    evse_uid: Ci36 | None = None
    authorization_reference: Ci36 | None = None


class StartSession(Ocpi):
    response_url: Url
    token: Token
    location_id: Ci36
    evse_uid: Ci36 | None = None
    connector_id: Ci36 | None = None
    authorization_reference: Ci36 | None = None


class StopSession(Ocpi):
    response_url: Url
    session_id: Ci36


class UnlockConnector(Ocpi):
    response_url: Url
    location_id: Ci36
    evse_uid: Ci36
    connector_id: Ci36
