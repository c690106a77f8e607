"""A booking, whole: from the eMSP's request to the lock; the gateway is away as the driver comes.

The firmware in its VM with bookings on and 112 KiB of heap;
mosquitto, gateway, the strict eMSP. The rules of slots are tested in virtual time
(portable/test_booking.py), the gateway's in test_gateway_bookings.py; this is that they fit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from host_tests.scenario_kit import Scene
from tools.stage import EVSE, LOCATION, until

TERMS = {
    "supported_access_methods": ["TOKEN"],
    "change_until_minutes": 0,
    "cancel_until_minutes": 0,
    "early_start_allowed": True,
    "early_start_time": 10,
}
PLACE = {"id": "BL1", "location_id": LOCATION, "evse_uids": [EVSE], "terms": TERMS}
PLACE |= {"timeslot_increment_minutes": 1, "guard_minutes": 10}


@pytest.fixture(scope="module")
def scene(
    micropython: Path, mosquitto: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("bookings")
    cpo = {"booking_locations": [PLACE]}
    with Scene(mosquitto, folder, cpo, heap="112k", bookings=True) as scene:
        try:
            scene.begin()
            yield scene
        finally:
            scene.evidence({})


def soon(minutes: int, lasting: int) -> dict[str, str]:
    """A period that begins on a full minute, `minutes` or up to one more from now."""
    begin = math.ceil(time.time() / 60) * 60 + minutes * 60
    moments = [datetime.fromtimestamp(at, UTC) for at in (begin, begin + lasting * 60)]
    names = ("start_date_time", "end_date_time")
    return {n: f"{m:%Y-%m-%dT%H:%M:%SZ}" for n, m in zip(names, moments, strict=True)}


def book(scene: Scene, request_id: str, **more: Any) -> str:
    asked = {
        "driver": "alice",
        "request_id": request_id,
        "location_id": LOCATION,
        "booking_location_id": "BL1",
        "period": soon(1, 30),
        "authorization_reference": "REF-" + request_id,
    }
    booking = scene.emsp_post("bookings", asked | more)
    assert booking["reservation_status"] in ("PENDING", "RESERVED"), booking
    return booking["id"]


def status(scene: Scene, booking_id: str, wanted: str) -> None:
    until(
        f"booking {wanted}",
        lambda: scene.emsp()["bookings"][booking_id]["reservation_status"] == wanted,
        30,
    )


def test_a_booking_is_kept_for_its_driver_without_the_gateway(scene: Scene) -> None:
    booking_id = book(scene, "RQ-1")
    status(scene, booking_id, "RESERVED")
    scene.status("RESERVED")  # its guard time runs
    free = scene.emsp()["booking_locations"]["BL1"]["calendars"][0]["available_timeslots"]
    assert free[0]["start_date_time"] > soon(1, 30)["end_date_time"]

    pins, since = scene.board.watch.mark(), scene.mark()
    scene.gateway.kill()
    scene.power_cycle(rtc="kept")
    until("the slot locks again", lambda: "RESERVED" in scene.board.console()[-4000:], 30)
    scene.plug("C")
    scene.show("bob")
    time.sleep(1)
    assert scene.closings(pins) == []
    scene.show("alice")
    scene.board.wait(contactor=1, lock=1, timeout_s=20)

    scene.start_gateway()
    scene.online()
    start = scene.record(since, t="start")
    assert start["booking_id"] == booking_id
    assert start["authorization_reference"] == "REF-RQ-1"
    assert scene.record(since, t="refused", what="card")["why"] == "booked"
    status(scene, booking_id, "FULFILLED")
    session_id = start["session_id"]
    until("ACTIVE", lambda: scene.session(session_id)["status"] == "ACTIVE")
    scene.charge(5)
    scene.show("alice")
    cdr = scene.cdr(session_id)
    assert cdr["booking_id"] == booking_id
    assert cdr["authorization_reference"] == "REF-RQ-1"
    scene.plug("A")
    scene.status("AVAILABLE")
    scene.whole()
    assert scene.valid() > 10


def test_a_cancelled_booking_lets_go(scene: Scene) -> None:
    period = soon(1, 20)
    booking_id = book(scene, "RQ-2", period=period)
    status(scene, booking_id, "RESERVED")
    scene.status("RESERVED")
    canceled = {"cancellation_reason": "TRAFFIC", "who_canceled": "EMSP"}
    asked = {
        "driver": "alice",
        "request_id": "RQ-2",
        "location_id": LOCATION,
        "booking_location_id": "BL1",
        "period": period,
        "authorization_reference": "REF-RQ-2",
        "canceled": canceled,
    }
    assert scene.emsp_post("bookings", asked)["reservation_status"] == "CANCELED"
    scene.status("AVAILABLE")
    status(scene, booking_id, "CANCELED")
    scene.whole()
