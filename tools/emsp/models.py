"""OCPI 2.2.1 objects as an eMSP receives them, strictly.

Purpose: a second pair of eyes. These models are written from the standard, not from the gateway:
what the gateway sends must satisfy both. Strict where the gateway is lenient: numbers must be JSON
numbers, unknown fields are reported (a typing error looks like one), DateTime must be exact.
Limits: objects this eMSP never receives are not described.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

_DATETIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,3})?Z?")


def when(text: str) -> datetime:
    """An OCPI DateTime. Raises ValueError for forms the standard does not allow."""
    if len(text) > 25 or not _DATETIME.fullmatch(text):
        raise ValueError(f"{text!r} is not a DateTime of OCPI (types, DateTime)")
    return datetime.fromisoformat(text.rstrip("Z")).replace(tzinfo=UTC)


def _when(text: str) -> str:
    when(text)
    return text


def _ascii(text: str) -> str:
    if not all(" " <= char <= "~" for char in text):
        raise ValueError("CiString allows printable ASCII only")
    return text


def _json_number(value: Any) -> Any:
    """JSON is read with exact decimals: a number is an int or a Decimal, never a string."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    return value


def _four_decimals(number: Decimal) -> Decimal:
    if -int(number.as_tuple().exponent) > 4:
        raise ValueError(f"{number} has more than OCPI's 4 decimals")
    return number


def ci(maximum: int, minimum: int = 1) -> Any:
    return Annotated[
        str, Field(min_length=minimum, max_length=maximum), AfterValidator(_ascii)
    ]


DateTime = Annotated[str, AfterValidator(_when)]
Number = Annotated[Decimal, BeforeValidator(_json_number), AfterValidator(_four_decimals)]
Url = Annotated[str, Field(max_length=255, pattern=r"^https?://\S+$")]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Price(Strict):
    excl_vat: Number
    incl_vat: Number | None = None


class DisplayText(Strict):
    language: Annotated[str, Field(min_length=2, max_length=2)]
    text: Annotated[str, Field(max_length=512)]


# --- locations


class GeoLocation(Strict):
    latitude: Annotated[str, Field(pattern=r"^-?[0-9]{1,2}\.[0-9]{5,7}$", max_length=10)]
    longitude: Annotated[str, Field(pattern=r"^-?[0-9]{1,3}\.[0-9]{5,7}$", max_length=11)]


Status = Literal[
    "AVAILABLE", "BLOCKED", "CHARGING", "INOPERATIVE", "OUTOFORDER", "PLANNED", "REMOVED",
    "RESERVED", "UNKNOWN",
]
PowerType = Literal["AC_1_PHASE", "AC_2_PHASE", "AC_2_PHASE_SPLIT", "AC_3_PHASE", "DC"]


class Connector(Strict):
    id: ci(36)  # type: ignore[valid-type]
    standard: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9_]+$")]
    format: Literal["SOCKET", "CABLE"]
    power_type: PowerType
    max_voltage: int
    max_amperage: int
    max_electric_power: int | None = None
    tariff_ids: list[ci(36)] = Field(default_factory=list)  # type: ignore[valid-type]
    terms_and_conditions: Url | None = None
    last_updated: DateTime


class Evse(Strict):
    uid: ci(36)  # type: ignore[valid-type]
    evse_id: ci(48) | None = None  # type: ignore[valid-type]
    status: Status
    capabilities: list[str] = Field(default_factory=list)
    connectors: Annotated[list[Connector], Field(min_length=1)]
    floor_level: Annotated[str, Field(max_length=4)] | None = None
    coordinates: GeoLocation | None = None
    physical_reference: Annotated[str, Field(max_length=16)] | None = None
    last_updated: DateTime


class Location(Strict):
    model_config = ConfigDict(strict=True, extra="allow")

    country_code: ci(2, 2)  # type: ignore[valid-type]
    party_id: ci(3)  # type: ignore[valid-type]
    id: ci(36)  # type: ignore[valid-type]
    publish: bool
    address: Annotated[str, Field(max_length=255)]
    city: Annotated[str, Field(max_length=45)]
    country: Annotated[str, Field(min_length=3, max_length=3)]
    coordinates: GeoLocation
    evses: list[Evse] = Field(default_factory=list)
    time_zone: Annotated[str, Field(max_length=255)]
    last_updated: DateTime


class EvsePatch(Strict):
    """PATCH of an EVSE: any part of it, always with `last_updated`."""

    status: Status | None = None
    last_updated: DateTime


# --- sessions and CDRs


class CdrToken(Strict):
    country_code: ci(2, 2)  # type: ignore[valid-type]
    party_id: ci(3)  # type: ignore[valid-type]
    uid: ci(36)  # type: ignore[valid-type]
    type: Literal["AD_HOC_USER", "APP_USER", "OTHER", "RFID"]
    contract_id: ci(36)  # type: ignore[valid-type]


CdrDimensionType = Literal[
    "ENERGY", "MAX_CURRENT", "MIN_CURRENT", "MAX_POWER", "MIN_POWER", "PARKING_TIME",
    "RESERVATION_TIME", "TIME",
]
SESSION_ONLY = ("CURRENT", "ENERGY_EXPORT", "ENERGY_IMPORT", "POWER", "STATE_OF_CHARGE")


class CdrDimension(Strict):
    type: CdrDimensionType
    volume: Number


class SessionDimension(Strict):
    type: CdrDimensionType | Literal[
        "CURRENT", "ENERGY_EXPORT", "ENERGY_IMPORT", "POWER", "STATE_OF_CHARGE"
    ]
    volume: Number


class ChargingPeriod(Strict):
    start_date_time: DateTime
    dimensions: Annotated[list[CdrDimension], Field(min_length=1)]
    tariff_id: ci(36) | None = None  # type: ignore[valid-type]


class SessionPeriod(Strict):
    start_date_time: DateTime
    dimensions: Annotated[list[SessionDimension], Field(min_length=1)]
    tariff_id: ci(36) | None = None  # type: ignore[valid-type]


AuthMethod = Literal["AUTH_REQUEST", "COMMAND", "WHITELIST"]


class Session(Strict):
    country_code: ci(2, 2)  # type: ignore[valid-type]
    party_id: ci(3)  # type: ignore[valid-type]
    id: ci(36)  # type: ignore[valid-type]
    start_date_time: DateTime
    end_date_time: DateTime | None = None
    kwh: Number
    cdr_token: CdrToken
    auth_method: AuthMethod
    authorization_reference: ci(36) | None = None  # type: ignore[valid-type]
    location_id: ci(36)  # type: ignore[valid-type]
    evse_uid: ci(36)  # type: ignore[valid-type]
    connector_id: ci(36)  # type: ignore[valid-type]
    meter_id: Annotated[str, Field(max_length=255)] | None = None
    currency: Annotated[str, Field(min_length=3, max_length=3)]
    charging_periods: list[SessionPeriod] = Field(default_factory=list)
    total_cost: Price | None = None
    status: Literal["ACTIVE", "COMPLETED", "INVALID", "PENDING", "RESERVATION"]
    last_updated: DateTime

    @model_validator(mode="after")
    def _ended(self) -> Session:
        if self.status == "COMPLETED" and self.end_date_time is None:
            raise ValueError("a COMPLETED session without end_date_time")
        return self


class CdrLocation(Strict):
    id: ci(36)  # type: ignore[valid-type]
    name: Annotated[str, Field(max_length=255)] | None = None
    address: Annotated[str, Field(max_length=45)]
    city: Annotated[str, Field(max_length=45)]
    postal_code: Annotated[str, Field(max_length=10)] | None = None
    state: Annotated[str, Field(max_length=20)] | None = None
    country: Annotated[str, Field(min_length=3, max_length=3)]
    coordinates: GeoLocation
    evse_uid: ci(36)  # type: ignore[valid-type]
    evse_id: ci(48)  # type: ignore[valid-type]
    connector_id: ci(36)  # type: ignore[valid-type]
    connector_standard: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9_]+$")]
    connector_format: Literal["SOCKET", "CABLE"]
    connector_power_type: PowerType


class PriceComponent(Strict):
    type: Literal["ENERGY", "FLAT", "PARKING_TIME", "TIME"]
    price: Number
    vat: Number | None = None
    step_size: int


class TariffElement(Strict):
    price_components: Annotated[list[PriceComponent], Field(min_length=1)]
    restrictions: dict[str, Any] | None = None


class Tariff(Strict):
    model_config = ConfigDict(strict=True, extra="allow")

    country_code: ci(2, 2)  # type: ignore[valid-type]
    party_id: ci(3)  # type: ignore[valid-type]
    id: ci(36)  # type: ignore[valid-type]
    currency: Annotated[str, Field(min_length=3, max_length=3)]
    elements: Annotated[list[TariffElement], Field(min_length=1)]
    last_updated: DateTime


class SignedValue(Strict):
    nature: ci(32)  # type: ignore[valid-type]
    plain_data: Annotated[str, Field(max_length=5000)]
    signed_data: Annotated[str, Field(max_length=5000, pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class SignedData(Strict):
    encoding_method: ci(36)  # type: ignore[valid-type]
    encoding_method_version: int | None = None
    public_key: (
        Annotated[str, Field(max_length=512, pattern=r"^[A-Za-z0-9+/]+={0,2}$")] | None
    ) = None
    signed_values: Annotated[list[SignedValue], Field(min_length=1)]
    url: Annotated[str, Field(max_length=512)] | None = None


class Cdr(Strict):
    country_code: ci(2, 2)  # type: ignore[valid-type]
    party_id: ci(3)  # type: ignore[valid-type]
    id: ci(39)  # type: ignore[valid-type]
    start_date_time: DateTime
    end_date_time: DateTime
    session_id: ci(36) | None = None  # type: ignore[valid-type]
    booking_id: ci(36) | None = None  # type: ignore[valid-type]  # 2.3.0 bookings
    cdr_token: CdrToken
    auth_method: AuthMethod
    authorization_reference: ci(36) | None = None  # type: ignore[valid-type]
    cdr_location: CdrLocation
    meter_id: Annotated[str, Field(max_length=255)] | None = None
    currency: Annotated[str, Field(min_length=3, max_length=3)]
    tariffs: list[Tariff] = Field(default_factory=list)
    charging_periods: Annotated[list[ChargingPeriod], Field(min_length=1)]
    signed_data: SignedData | None = None
    total_cost: Price
    total_fixed_cost: Price | None = None
    total_energy: Number
    total_energy_cost: Price | None = None
    total_time: Number
    total_time_cost: Price | None = None
    total_parking_time: Number | None = None
    total_parking_cost: Price | None = None
    total_reservation_cost: Price | None = None
    remark: Annotated[str, Field(max_length=255)] | None = None
    invoice_reference_id: ci(39) | None = None  # type: ignore[valid-type]
    credit: bool | None = None
    credit_reference_id: ci(39) | None = None  # type: ignore[valid-type]
    home_charging_compensation: bool | None = None
    last_updated: DateTime

    @model_validator(mode="after")
    def _adds_up(self) -> Cdr:
        if len(self.id) > 36 and not self.credit:
            raise ValueError("id: only a credit CDR may be longer than 36")
        if when(self.end_date_time) < when(self.start_date_time):
            raise ValueError("end_date_time is before start_date_time")
        starts = [when(period.start_date_time) for period in self.charging_periods]
        if starts != sorted(starts) or starts[0] < when(self.start_date_time):
            raise ValueError("charging_periods: starts are out of order")
        energy = sum(
            (
                dimension.volume
                for period in self.charging_periods
                for dimension in period.dimensions
                if dimension.type == "ENERGY"
            ),
            Decimal(0),
        )
        if energy != self.total_energy and "incomplete" not in (self.remark or ""):
            raise ValueError(f"total_energy {self.total_energy}, but the periods sum to {energy}")
        return self


# --- commands


class CommandResponse(Strict):
    result: Literal["NOT_SUPPORTED", "REJECTED", "ACCEPTED", "UNKNOWN_SESSION"]
    timeout: int
    message: list[DisplayText] = Field(default_factory=list)


class CommandResult(Strict):
    result: Literal[
        "ACCEPTED", "CANCELED_RESERVATION", "EVSE_OCCUPIED", "EVSE_INOPERATIVE", "FAILED",
        "NOT_SUPPORTED", "REJECTED", "TIMEOUT", "UNKNOWN_RESERVATION",
    ]
    message: list[DisplayText] = Field(default_factory=list)


class LocationReferences(Strict):
    """What a CPO sends to authorise a Token in real time."""

    location_id: ci(36)  # type: ignore[valid-type]
    evse_uids: list[ci(36)] = Field(default_factory=list)  # type: ignore[valid-type]


# --- versions and credentials


class Version(Strict):
    version: str
    url: Url


class Endpoint(Strict):
    identifier: str
    role: Literal["SENDER", "RECEIVER"]
    url: Url


class VersionDetails(Strict):
    version: str
    endpoints: Annotated[list[Endpoint], Field(min_length=1)]


class BusinessDetails(Strict):
    model_config = ConfigDict(strict=True, extra="allow")

    name: Annotated[str, Field(max_length=100)]


class CredentialsRole(Strict):
    role: Literal["CPO", "EMSP", "HUB", "NAP", "NSP", "OTHER", "SCSP"]
    business_details: BusinessDetails
    party_id: ci(3)  # type: ignore[valid-type]
    country_code: ci(2, 2)  # type: ignore[valid-type]


class Credentials(Strict):
    token: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,64}$")]
    url: Url
    roles: Annotated[list[CredentialsRole], Field(min_length=1)]


class Envelope(Strict):
    data: Any = None
    status_code: Annotated[int, Field(ge=1000, le=4999)]
    status_message: str | None = None
    timestamp: DateTime


# --- 2.3.0 bookings extension 1.1


class BookingToken(Strict):
    country_code: ci(2, 2)  # type: ignore[valid-type]
    party_id: ci(3)  # type: ignore[valid-type]
    uid: ci(36)  # type: ignore[valid-type]
    type: Literal["AD_HOC_USER", "APP_USER", "OTHER", "RFID"]
    contract_id: ci(36)  # type: ignore[valid-type]


class Timeslot(Strict):
    start_date_time: DateTime
    end_date_time: DateTime
    min_power: Number | None = None
    max_power: Number | None = None
    green_energy_support: bool | None = None

    @model_validator(mode="after")
    def _forward(self) -> Timeslot:
        if when(self.end_date_time) <= when(self.start_date_time):
            raise ValueError("end_date_time is not after start_date_time")
        return self


class BookingTerms(Strict):
    model_config = ConfigDict(strict=True, extra="allow")

    supported_access_methods: Annotated[list[str], Field(min_length=1)]
    change_until_minutes: Number
    cancel_until_minutes: Number


class Cancellation(Strict):
    cancellation_reason: Literal[
        "POWER_OUTAGE", "BROKEN_CHARGER", "FULL", "BLOCKED", "TRAFFIC", "BROKEN_VEHICLE",
        "NO_CANCELED", "UNKNOWN",
    ]  # fmt: skip
    who_canceled: Literal["CPO", "EMSP", "HUB", "NAP", "NSP", "OTHER", "SCSP"]


class BookingRequestStatus(Strict):
    request_status: Literal["PENDING", "ACCEPTED", "DECLINED", "FAILED"]
    booking_request: dict[str, Any]
    request_received: DateTime


class Booking(Strict):
    id: ci(36)  # type: ignore[valid-type]
    country_code: ci(2, 2)  # type: ignore[valid-type]
    party_id: ci(3)  # type: ignore[valid-type]
    request_id: ci(36)  # type: ignore[valid-type]
    booking_option: dict[str, Any] | None = None
    location_id: ci(36)  # type: ignore[valid-type]
    booking_tokens: list[BookingToken]
    tariff_ids: list[str] | None = None
    period: Timeslot
    reservation_status: Literal[
        "PENDING", "RESERVED", "CANCELED", "FAILED", "NO_SHOW", "FULFILLED", "REJECTED", "UNKNOWN"
    ]
    canceled: Cancellation | None = None
    access_information: list[dict[str, Any]] | None = None
    authorization_reference: ci(36)  # type: ignore[valid-type]
    booking_terms: BookingTerms
    booking_requests: Annotated[list[BookingRequestStatus], Field(min_length=1)]
    last_updated: DateTime


class Calendar(Strict):
    id: ci(36)  # type: ignore[valid-type]
    begin_from: DateTime
    end_before: DateTime
    timeslot_increment: int | None = None
    available_timeslots: Annotated[list[Timeslot], Field(min_length=1)]
    last_updated: DateTime


class BookingLocation(Strict):
    country_code: ci(2, 2)  # type: ignore[valid-type]
    party_id: ci(3)  # type: ignore[valid-type]
    id: ci(36)  # type: ignore[valid-type]
    location_id: ci(36)  # type: ignore[valid-type]
    booking_option: dict[str, Any] | None = None
    policy: dict[str, Any] | None = None
    tariff_ids: list[str] | None = None
    booking_terms: BookingTerms | None = None
    calendars: list[Calendar]
    last_updated: DateTime
