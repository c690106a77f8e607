"""Shapes of the OCPI 2.3.0 bookings extension 1.1 (module `Booking`), as pydantic models.

Names and limits are the standard's text; where its examples differ from its tables (`formats` for
`connector_format`, seconds of 99, party ids of five letters, `green_power_support`), the tables
count. Times in minutes are integers here, which every `number` of the text is in practice.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from tools.gateway import ocpi
from tools.gateway.ocpi import Ci2, Ci3, Ci36, DateTime, Ocpi

VERSION = "2.3.0"
MODULE = "Booking"
NOT_ASSIGNED = "#NA"

Minutes = Annotated[int, Field(ge=0, le=525_600)]
AccessMethod = Literal[
    "OPEN", "TOKEN", "LICENSE_PLATE", "ACCESS_CODE", "INTERCOM", "PARKING_TICKET"
]
CanceledReason = Literal[
    "POWER_OUTAGE", "BROKEN_CHARGER", "FULL", "BLOCKED", "TRAFFIC", "BROKEN_VEHICLE",
    "NO_CANCELED", "UNKNOWN",
]  # fmt: skip
RequestStatus = Literal["PENDING", "ACCEPTED", "DECLINED", "FAILED"]
Status = Literal[
    "PENDING", "RESERVED", "CANCELED", "FAILED", "NO_SHOW", "FULFILLED", "REJECTED", "UNKNOWN"
]


class AccessInformation(Ocpi):
    method: AccessMethod
    value: str | None = None


class BookingOption(Ocpi):
    """What is booked. Fields of vehicle and parking space pass as they are."""

    model_config = ConfigDict(extra="allow")

    evse_uid: Ci36 | None = None
    connector_id: Ci36 | None = None


class Period(Ocpi):
    start_date_time: DateTime
    end_date_time: DateTime

    @model_validator(mode="after")
    def _forward(self) -> Period:
        if ocpi.parse_datetime(self.end_date_time) <= ocpi.parse_datetime(self.start_date_time):
            raise ValueError(f"end_date_time {self.end_date_time} is not after start_date_time")
        return self


class BookingToken(Ocpi):
    country_code: Ci2
    party_id: Ci3
    uid: Ci36
    type: ocpi.TokenType
    contract_id: Ci36


class Cancellation(Ocpi):
    cancellation_reason: CanceledReason
    who_canceled: ocpi.Role


class BookingTerms(Ocpi):
    rfid_auth_required: bool | None = None
    token_groups_supported: bool | None = None
    remote_auth_supported: bool | None = None
    supported_access_methods: Annotated[list[AccessMethod], Field(min_length=1)]
    change_until_minutes: Minutes
    cancel_until_minutes: Minutes
    change_not_allowed: bool | None = None
    early_start_allowed: bool | None = None
    early_start_time: Minutes | None = None
    noshow_timeout: Minutes | None = None
    noshow_fee: bool | None = None
    late_stop_allowed: bool | None = None
    late_stop_time: Minutes | None = None
    overlapping_bookings_allowed: bool | None = None
    min_booking_duration: Minutes | None = None
    max_booking_duration: Minutes | None = None
    booking_terms: ocpi.Url | None = None

    @model_validator(mode="after")
    def _said_how_long(self) -> BookingTerms:
        for kind in ("early_start", "late_stop"):
            if getattr(self, f"{kind}_allowed") and not getattr(self, f"{kind}_time"):
                raise ValueError(f"{kind}_time: is needed where {kind}_allowed is true")
        return self


class BookingRequest(Ocpi):
    country_code: Ci2
    party_id: Ci3
    request_id: Ci36
    booking_option: BookingOption | None = None
    location_id: Ci36
    booking_location_id: Ci36
    tokens: list[BookingToken] = Field(default_factory=list)
    access_information: list[AccessInformation] | None = None
    period: Period
    authorization_reference: Ci36
    power_required: int | None = None
    canceled: Cancellation | None = None


class BookingRequestStatus(Ocpi):
    request_status: RequestStatus
    booking_request: BookingRequest
    request_received: DateTime


class Timeslot(Period):
    min_power: int | None = None
    max_power: int | None = None
    green_energy_support: bool | None = None


class Booking(Ocpi):
    id: Ci36
    country_code: Ci2
    party_id: Ci3
    request_id: Ci36
    booking_option: BookingOption | None = None
    location_id: Ci36
    booking_tokens: list[BookingToken] = Field(default_factory=list)
    tariff_ids: list[Ci36] | None = None
    period: Timeslot
    reservation_status: Status
    canceled: Cancellation | None = None
    access_information: list[AccessInformation] | None = None
    authorization_reference: Ci36
    booking_terms: BookingTerms
    booking_requests: Annotated[list[BookingRequestStatus], Field(min_length=1)]
    last_updated: DateTime


class Calendar(Ocpi):
    id: Ci36
    begin_from: DateTime
    end_before: DateTime
    timeslot_increment: int | None = None
    available_timeslots: Annotated[list[Timeslot], Field(min_length=1)]
    last_updated: DateTime


class BookingLocation(Ocpi):
    country_code: Ci2
    party_id: Ci3
    id: Ci36
    location_id: Ci36
    booking_option: BookingOption | None = None
    policy: dict[str, Any] | None = None
    tariff_ids: list[Ci36] | None = None
    booking_terms: BookingTerms | None = None
    calendars: list[Calendar] = Field(default_factory=list)
    last_updated: DateTime
