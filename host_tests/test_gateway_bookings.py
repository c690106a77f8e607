"""Bookings at the gateway: OCPI 2.3.0 bookings extension 1.1, sender side, and the boards' lists.

Rules and statuses are the text's (mod_bookings); where it is silent, tools/gateway/README.md says
what was chosen. The board is the reference board of uplink_peer, which does what the test says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from host_tests.gateway_kit import (
    ADMIN,
    Client,
    Clock,
    FakeEmsp,
    Gateway,
    board_token,
    config_of,
    token,
    until,
)
from host_tests.uplink_peer import Board
from tools.gateway import ocpi_bookings as shapes
from tools.gateway.config import ConfigError, parse_config

Fields = dict[str, Any]
HOUR = 60
TERMS = {
    "supported_access_methods": ["TOKEN"],
    "change_until_minutes": 30,
    "cancel_until_minutes": 60,
    "noshow_timeout": 25,
    "early_start_allowed": True,
    "early_start_time": 20,
    "min_booking_duration": 15,
    "max_booking_duration": 240,
}


def location(**changes: Any) -> Fields:
    return {"id": "BL1", "location_id": "LOC1", "evse_uids": ["E1"], "terms": TERMS} | changes


class Site:
    """A gateway with one bookable EVSE, a registered eMSP, and its board."""

    def __init__(self, folder: Path, *, online: bool = True, **entry: Any) -> None:
        self.gateway = Gateway(folder, Clock(), booking_locations=[location(**entry)])
        self.emsp = FakeEmsp()
        self.emsp.modules.append("Booking")
        self.client: Client = self.emsp.register(self.gateway)
        self.boards = {"E1": Board(), "E2": Board("DEMO-2", "ab" * 32)}
        self.slots: dict[str, dict[str, Fields]] = {"E1": {}, "E2": {}}
        self.versions = {"E1": 0, "E2": 0}
        if online:
            for uid in self.boards:
                self.wake(uid)

    def close(self) -> None:
        self.gateway.stop()
        self.emsp.stop()

    def wake(self, uid: str) -> None:
        board = self.boards[uid]
        board.hello()
        board.status("AVAILABLE")
        self.gateway.talk(board)

    # --- the board's side, from UPLINK.md

    def obey(self, uid: str = "E1", word: str | None = None) -> list[Fields]:
        """Fetch commands and carry out SET_BOOKINGS as a board does, until none comes."""
        board, slots, done = self.boards[uid], self.slots[uid], []
        while True:
            self.gateway.talk(board)
            self.gateway.clock.unix_ms = max(self.gateway.clock.unix_ms, board.unix_ms)
            raw = self.gateway.link(board)(board.message())
            if raw is not None:
                board.receive(raw)
            if not board.commands:
                return done
            command = board.take("SET_BOOKINGS")
            data = command["data"]
            done.append(data)
            if word is not None or data["base"] not in (0, self.versions[uid]):
                board.result(command, word or "REJECTED", evse=1)
                word = None
                continue
            if not data["base"]:
                slots.clear()
            for booking_id in data["drop"]:
                slots.pop(booking_id, None)
            board.write(
                "event", what="bookings", evse=1, base=data["base"], version=data["version"]
            )
            for slot in data["put"]:
                slots[slot["booking_id"]] = slot
                board.write("event", what="booked", evse=1, slot=slot)
            self.versions[uid] = data["version"]
            board.result(command, "ACCEPTED", evse=1)

    # --- the eMSP's side

    def at(self, ahead_min: int) -> datetime:
        """A quarter of an hour that lies so far ahead, give or take one."""
        now = datetime.fromtimestamp(self.gateway.clock() / 1000, UTC)
        full = now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0)
        return full + timedelta(minutes=ahead_min)

    def body(self, begin: int = 3 * HOUR, minutes: int = 60, **changes: Any) -> Fields:
        start = self.at(begin)
        return {
            "country_code": "NL",
            "party_id": "EMS",
            "request_id": "RQ1",
            "location_id": "LOC1",
            "booking_location_id": "BL1",
            "tokens": [board_token() | {"contract_id": "NL-EMS-C00000001-A"}],
            "period": {
                "start_date_time": f"{start:%Y-%m-%dT%H:%M:%SZ}",
                "end_date_time": f"{start + timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}",
            },
            "authorization_reference": "AUTH-1",
        } | changes

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, int, Any]:
        return self.client.ask(method, f"{self.gateway.url}/ocpi/2.3.0/bookings{path}", body)

    def book(self, **changes: Any) -> Fields:
        http, code, data = self.ask("POST", "", self.body(**changes))
        assert (http, code) == (200, 1000), data
        shapes.Booking.model_validate(data)
        return data

    def heard(self, booking_id: str) -> Fields:
        """The Booking as it was pushed to the eMSP."""
        until(self.gateway.idle)
        held: Fields = self.emsp.objects[f"Booking/BE/BEC/{booking_id}"]
        return held

    def booking(self, booking_id: str) -> Fields:
        http, code, data = self.ask("GET", "")
        assert (http, code) == (200, 1000)
        (found,) = [entry for entry in data if entry["id"] == booking_id]
        return found

    def calendar(self, number: int = 0) -> list[tuple[str, str]]:
        http, code, data = self.ask("GET", "/booking_locations/BL1")
        assert (http, code) == (200, 1000)
        shapes.BookingLocation.model_validate(data)
        slots = data["calendars"][number]["available_timeslots"]
        return [(slot["start_date_time"], slot["end_date_time"]) for slot in slots]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def sites(folder: Path, **entry: Any) -> Iterator[Site]:
    site = Site(folder, **entry)
    try:
        yield site
    finally:
        site.close()


def statuses(booking: Fields) -> tuple[str, list[str]]:
    asked = [entry["request_status"] for entry in booking["booking_requests"]]
    return booking["reservation_status"], asked


# --- the module


def test_the_module_is_offered_where_something_can_be_booked(site: Site, tmp_path: Path) -> None:
    _, _, details = site.client.ask("GET", f"{site.gateway.url}/ocpi/2.2.1")
    assert {
        "identifier": "Booking",
        "role": "SENDER",
        "url": f"{site.gateway.url}/ocpi/2.3.0/bookings",
    } in details["endpoints"]
    stranger = FakeEmsp(party_id="OTH")  # has no such module, and may not know the word
    client = stranger.register(site.gateway, "registration-token-2")
    _, _, details = client.ask("GET", f"{site.gateway.url}/ocpi/2.2.1")
    assert "Booking" not in {entry["identifier"] for entry in details["endpoints"]}
    stranger.stop()
    (tmp_path / "other").mkdir()
    other = Gateway(tmp_path / "other")
    with other:
        emsp = FakeEmsp()
        client = emsp.register(other)
        _, _, details = client.ask("GET", f"{other.url}/ocpi/2.2.1")
        assert "Booking" not in {entry["identifier"] for entry in details["endpoints"]}
        emsp.stop()


def test_a_booking_location_shows_terms_and_free_slots(site: Site) -> None:
    http, code, data = site.ask("GET", "/booking_locations")
    assert (http, code, len(data)) == (200, 1000, 1)
    shown = shapes.BookingLocation.model_validate(data[0]).dump()
    assert shown["booking_option"]["evse_uid"] == "E1"
    assert shown["booking_terms"] == TERMS
    (calendar,) = data[0]["calendars"]
    assert calendar["timeslot_increment"] == 15
    _, _, same = site.ask("GET", f"/booking_locations/bl1/{calendar['id']}")
    assert same == calendar
    assert site.ask("GET", "/booking_locations/BL9")[:2] == (404, 2003)
    assert site.ask("GET", "/booking_locations/BL1/NO")[:2] == (404, 2003)


def test_the_window_of_timeslots_selects(site: Site) -> None:
    early, late = f"{site.at(0):%Y-%m-%dT%H:%M:%SZ}", f"{site.at(60 * 24 * 30):%Y-%m-%dT%H:%M:%SZ}"
    assert len(site.ask("GET", f"/booking_locations?timeslot_from={early}")[2]) == 1
    assert site.ask("GET", f"/booking_locations?timeslot_from={late}")[2] == []
    assert site.ask("GET", "/booking_locations?timeslot_to=2020-01-01T00:00:00Z")[2] == []
    assert site.ask("GET", "/booking_locations?timeslot_to=soon")[1] == 2001


# --- asking for one


def test_reserved_means_that_the_board_holds_it(site: Site) -> None:
    booking = site.book()
    assert statuses(booking) == ("PENDING", ["PENDING"])
    (data,) = site.obey()
    (slot,) = data["put"]
    start = site.at(3 * HOUR)
    assert slot["start_ms"] == start.timestamp() * 1000
    assert slot["end_ms"] - slot["start_ms"] == 3_600_000
    assert (slot["guard_ms"], slot["early_ms"], slot["noshow_ms"]) == (
        300_000,
        1_200_000,
        1_500_000,
    )
    assert slot["tokens"] == [board_token()] and not slot.get("remote")
    assert slot["authorization_reference"] == "AUTH-1"
    now = site.booking(booking["id"])
    assert statuses(now) == ("RESERVED", ["ACCEPTED"])
    assert now["booking_option"]["evse_uid"] == "E1"
    pushed = site.heard(booking["id"])
    assert statuses(pushed) == ("RESERVED", ["ACCEPTED"])
    assert pushed["last_updated"] == now["last_updated"]


def test_a_booked_slot_and_its_guard_leave_the_calendar(site: Site) -> None:
    site.book()
    start, end = site.at(3 * HOUR), site.at(4 * HOUR)
    before, after = site.calendar()[:2]
    # five minutes of guard, in steps of a quarter
    assert before[1] == f"{start - timedelta(minutes=15):%Y-%m-%dT%H:%M:%S}.000Z"
    assert after[0] == f"{end + timedelta(minutes=15):%Y-%m-%dT%H:%M:%S}.000Z"
    until(site.gateway.idle)
    pushed = site.emsp.objects["Booking/BE/BEC/booking_locations/BL1"]
    slots = pushed["calendars"][0]["available_timeslots"]
    assert (slots[0]["start_date_time"], slots[0]["end_date_time"]) == before


@pytest.mark.parametrize(
    ("begin", "minutes", "word"),
    [
        (3 * HOUR, 60, "free"),  # the same
        (3 * HOUR + 45, 60, "free"),  # overlaps at the end
        (2 * HOUR, 60, "free"),  # ends where the other begins: no guard between
        (2 * HOUR + 15, 240, "free"),  # around it
        (4 * HOUR, 60, "free"),  # begins where the other ends
    ],
)
def test_overlapping_bookings_are_refused(site: Site, begin: int, minutes: int, word: str) -> None:
    site.book()
    other = [board_token("04FFFFFF") | {"contract_id": "C2"}]
    body = site.body(begin, minutes, request_id="RQ2", tokens=other)
    reply = site.client.raw("POST", f"{site.gateway.url}/ocpi/2.3.0/bookings", body).json()
    assert statuses(reply["data"]) == ("REJECTED", ["DECLINED"])
    assert word in reply["status_message"]


def test_no_slot_begins_before_a_reservation_expires(site: Site) -> None:
    """It is reserved until a moment within the guard time: the right that is older stands."""
    board, gateway = site.boards["E1"], site.gateway
    expiry = site.at(3 * HOUR) - timedelta(minutes=4)
    body = {
        "response_url": f"{site.emsp.url}/result", "token": token(), "reservation_id": "R1",
        "location_id": "LOC1", "evse_uid": "E1", "expiry_date": f"{expiry:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    assert site.client.ask("POST", "commands/RESERVE_NOW", body)[2]["result"] == "ACCEPTED"
    gateway.talk(board)
    command = board.take("RESERVE_NOW")
    data = command["data"]
    board.write("reserve", evse=1, session_id="S1", **{
        name: data[name] for name in ("reservation_id", "token", "expiry_ms")
    })  # fmt: skip
    board.result(command, "ACCEPTED", evse=1, session_id="S1")
    gateway.talk(board)
    assert site.book()["reservation_status"] == "REJECTED"
    assert site.book(begin=3 * HOUR + 15, request_id="RQ2")["reservation_status"] == "PENDING"
    board.write("release", evse=1, reservation_id=data["reservation_id"], session_id="S1",
                cause="cancelled_by_cpo")  # fmt: skip
    gateway.talk(board)
    assert site.book(begin=1 * HOUR + 45, request_id="RQ3")["reservation_status"] == "PENDING"


def test_bookings_with_the_guard_between_are_taken(site: Site) -> None:
    site.book()
    site.book(begin=4 * HOUR + 15, request_id="RQ2")
    site.book(begin=1 * HOUR + 45, request_id="RQ3")
    site.obey()
    assert len(site.slots["E1"]) == 3


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"begin": -HOUR}, "in the past"),
        ({"begin": 60 * 24 * 20}, "14 days ahead"),
        ({"minutes": 20}, "steps of 15"),
        ({"minutes": 300}, "at most 240"),
        ({"tokens": []}, "name 1 to 3"),
        ({"tokens": [board_token(party_id="XXX") | {"contract_id": "C"}]}, "not yours"),
    ],
)
def test_what_the_terms_do_not_allow_is_rejected(site: Site, changes: Fields, word: str) -> None:
    body = site.body(**changes)
    reply = site.client.raw("POST", f"{site.gateway.url}/ocpi/2.3.0/bookings", body).json()
    assert reply["status_code"] == 1000
    assert statuses(reply["data"]) == ("REJECTED", ["DECLINED"])
    assert word in reply["status_message"]
    assert site.obey() == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"party_id": "XXX"}, 2001),
        ({"booking_location_id": "BL9"}, 2003),
        ({"location_id": "LOC9"}, 2001),
        ({"authorization_reference": None}, 2001),
        ({"canceled": {"cancellation_reason": "TRAFFIC", "who_canceled": "EMSP"}}, 2001),
    ],
)
def test_what_is_no_booking_request_is_an_error(site: Site, changes: Fields, code: int) -> None:
    body = {name: value for name, value in site.body(**changes).items() if value is not None}
    assert site.ask("POST", "", body)[:2] == (200, code)
    assert site.ask("GET", "")[2] == []


def test_one_token_one_place_at_a_time(tmp_path: Path) -> None:
    for site in sites(tmp_path, evse_uids=["E1", "E2"]):
        site.book()
        second = site.book(request_id="RQ2")
        assert second["reservation_status"] == "REJECTED"


def test_overlapping_bookings_of_a_token_where_the_terms_allow_them(tmp_path: Path) -> None:
    terms = TERMS | {"overlapping_bookings_allowed": True}
    for site in sites(tmp_path, evse_uids=["E1", "E2"], terms=terms):
        site.book()
        assert site.book(request_id="RQ2")["reservation_status"] == "PENDING"


def test_the_same_request_again_is_one_booking(site: Site) -> None:
    first = site.book()
    assert site.book() == first
    assert len(site.ask("GET", "")[2]) == 1


def test_a_party_sees_its_own_bookings_only(site: Site) -> None:
    site.book()
    other = FakeEmsp(party_id="OTH")
    client = other.register(site.gateway, "registration-token-2")
    assert client.ask("GET", f"{site.gateway.url}/ocpi/2.3.0/bookings")[2] == []
    other.stop()


# --- boards that are away, or forget


def test_a_booking_made_while_the_board_is_away_is_kept(tmp_path: Path) -> None:
    for site in sites(tmp_path, online=False):
        booking = site.book()
        assert booking["reservation_status"] == "PENDING"
        site.wake("E1")
        site.gateway.context.southbound.tick()
        site.obey()
        assert site.booking(booking["id"])["reservation_status"] == "RESERVED"


def test_a_booking_that_no_board_confirmed_has_failed_at_its_start(tmp_path: Path) -> None:
    for site in sites(tmp_path, online=False):
        booking = site.book(begin=30)
        site.gateway.clock.advance(40 * 60_000)
        site.gateway.context.southbound.tick()
        assert statuses(site.booking(booking["id"])) == ("FAILED", ["FAILED"])


def test_a_board_that_lost_its_list_gets_all_of_it_again(site: Site) -> None:
    site.book()
    site.obey()
    site.slots["E1"].clear()
    site.versions["E1"] = 7
    second = site.book(begin=6 * HOUR, request_id="RQ2")
    first, again = site.obey()
    assert first["base"] and not again["base"]
    assert {slot["booking_id"] for slot in again["put"]} == set(site.slots["E1"])
    assert len(site.slots["E1"]) == 2
    assert site.booking(second["id"])["reservation_status"] == "RESERVED"


def test_a_command_without_an_answer_is_followed_by_the_whole_list(site: Site) -> None:
    site.book()
    site.gateway.clock.advance(21_000)
    site.gateway.context.southbound.tick()
    site.gateway.context.southbound.tick()
    site.obey()
    assert len(site.slots["E1"]) == 1


def test_the_nearest_slots_are_at_the_board_and_the_next_follow(site: Site) -> None:
    ids = [site.book(begin=(2 + 2 * i) * HOUR, request_id=f"RQ{i}")["id"] for i in range(10)]
    assert len(site.obey()) >= 4
    assert set(site.slots["E1"]) == set(ids[:8])
    site.boards["E1"].write("event", what="unbooked", evse=1, booking_id=ids[0], cause="no_show")
    site.slots["E1"].pop(ids[0])
    site.obey()
    assert set(site.slots["E1"]) == set(ids[1:9])


# --- changes and cancellations


def test_a_change_is_a_new_request_under_the_same_id(site: Site) -> None:
    booking = site.book()
    site.obey()
    changed = site.book(begin=5 * HOUR)
    assert changed["id"] == booking["id"]
    assert statuses(changed) == ("RESERVED", ["ACCEPTED", "PENDING"])
    assert changed["period"] == booking["period"], "the old one stands until the board has it"
    site.obey()
    now = site.booking(booking["id"])
    assert statuses(now) == ("RESERVED", ["ACCEPTED", "ACCEPTED"])
    assert now["period"] == site.body(5 * HOUR)["period"]
    assert site.slots["E1"][booking["id"]]["start_ms"] == site.at(5 * HOUR).timestamp() * 1000


@pytest.mark.parametrize(
    ("begin", "taken", "changes"),
    [
        (15, None, {"begin": 5 * HOUR}),  # later than change_until_minutes
        (3 * HOUR, 8 * HOUR, {"begin": 8 * HOUR}),  # where another booking is
        (3 * HOUR, None, {"begin": 3 * HOUR, "minutes": 300}),  # longer than allowed
        (
            45,  # later than cancel_until_minutes
            None,
            {"canceled": {"cancellation_reason": "TRAFFIC", "who_canceled": "EMSP"}},
        ),
    ],
)
def test_a_change_that_is_not_allowed_leaves_the_booking(
    site: Site, begin: int, taken: int | None, changes: Fields
) -> None:
    booking = site.book(begin=begin)
    if taken is not None:
        site.book(begin=taken, request_id="RQ2")
    site.obey()
    slots = json.dumps(site.slots["E1"])
    declined = site.book(**({"begin": begin} | changes))
    assert statuses(declined) == ("RESERVED", ["ACCEPTED", "DECLINED"])
    assert declined["period"] == booking["period"]
    site.obey()
    assert json.dumps(site.slots["E1"]) == slots


def test_a_cancelled_booking_leaves_board_and_calendar(site: Site) -> None:
    booking = site.book()
    site.obey()
    canceled = {"cancellation_reason": "TRAFFIC", "who_canceled": "EMSP"}
    now = site.book(canceled=canceled)
    assert statuses(now) == ("CANCELED", ["ACCEPTED", "ACCEPTED"])
    assert now["canceled"] == canceled
    site.obey()
    assert site.slots["E1"] == {}
    assert len(site.calendar()) == 1
    assert site.heard(booking["id"])["reservation_status"] == "CANCELED"
    again = site.book(begin=7 * HOUR)
    assert statuses(again) == ("CANCELED", ["ACCEPTED", "ACCEPTED", "DECLINED"]), "final"


def test_the_operator_cancels_with_a_reason(site: Site) -> None:
    booking = site.book()
    site.obey()
    url = f"{site.gateway.url}/admin/bookings"
    key = {"Authorization": f"Bearer {ADMIN}"}
    bad = httpx.post(f"{url}/{booking['id']}/cancel", json={"reason": "WHY"}, headers=key)
    assert bad.status_code == 400
    done = httpx.post(f"{url}/{booking['id']}/cancel", json={"reason": "BLOCKED"}, headers=key)
    assert done.status_code == 200
    assert httpx.get(url, headers=key).json()[0]["reservation_status"] == "CANCELED"
    told = site.heard(booking["id"])
    assert told["canceled"] == {"cancellation_reason": "BLOCKED", "who_canceled": "CPO"}
    site.obey()
    assert site.slots["E1"] == {}
    gone = httpx.post(f"{url}/{booking['id']}/cancel", json={"reason": "FULL"}, headers=key)
    assert gone.status_code == 404


# --- what becomes of it


def test_the_start_fulfils_it_and_session_and_cdr_carry_it(site: Site) -> None:
    booking = site.book()
    site.obey()
    board = site.boards["E1"]
    board.write(
        "start",
        evse=1,
        session_id="S1",
        token=board_token(),
        auth_method="WHITELIST",
        source="card",
        register_wh=1000,
        serial="SN",
        epoch=0,
        outside_wh=0,
        booking_id=booking["id"],
        authorization_reference="AUTH-1",
    )
    board.total_wh, board.register_wh, board.begin = 0, 1000, board.now()
    site.gateway.talk(board)
    assert site.booking(booking["id"])["reservation_status"] == "FULFILLED"
    board.period("S1", 5000, 600_000)
    board.stop("S1")
    site.gateway.talk(board)
    assert site.heard(booking["id"])["reservation_status"] == "FULFILLED"
    (cdr,) = site.emsp.pushes("POST", "cdrs")
    assert cdr["booking_id"] == booking["id"]
    assert cdr["authorization_reference"] == "AUTH-1"
    assert cdr["cdr_token"]["contract_id"] == "NL-EMS-C00000001-A"
    assert site.obey() == [], "the board let go of it by itself"


def test_nobody_came(site: Site) -> None:
    booking = site.book()
    site.obey()
    site.boards["E1"].write(
        "event", what="unbooked", evse=1, booking_id=booking["id"], cause="no_show"
    )
    site.obey()
    assert site.heard(booking["id"])["reservation_status"] == "NO_SHOW"


def test_an_open_booking_is_given_an_evse_and_moves_when_that_fails(tmp_path: Path) -> None:
    for site in sites(tmp_path, evse_uids=["E1", "E2"]):
        _, _, shown = site.ask("GET", "/booking_locations/BL1")
        assert shown["booking_option"]["evse_uid"] == "#NA"
        booking = site.book(begin=90, booking_option={"evse_uid": "#NA"})
        site.obey()
        assert site.booking(booking["id"])["booking_option"]["evse_uid"] == "E1"
        site.gateway.clock.advance(65 * 60_000)
        for uid in ("E1", "E2"):
            site.boards[uid].sleep(65 * 60_000)
        site.boards["E1"].status("OUTOFORDER")
        site.gateway.talk(site.boards["E1"])
        site.gateway.talk(site.boards["E2"])
        site.gateway.context.southbound.tick()
        site.obey("E2")
        site.obey("E1")
        assert site.slots["E1"] == {} and set(site.slots["E2"]) == {booking["id"]}
        told = site.heard(booking["id"])
        assert told["booking_option"]["evse_uid"] == "E2"
        assert told["reservation_status"] == "RESERVED"


def test_a_booking_whose_evse_fails_without_another_is_cancelled_in_time(site: Site) -> None:
    booking = site.book(begin=60)
    site.obey()
    site.boards["E1"].status("OUTOFORDER")
    site.gateway.talk(site.boards["E1"])
    site.gateway.context.southbound.tick()
    assert site.booking(booking["id"])["reservation_status"] == "RESERVED", "an hour to mend it"
    site.gateway.clock.advance(40 * 60_000)
    site.boards["E1"].sleep(40 * 60_000)
    site.gateway.talk(site.boards["E1"])
    site.gateway.context.southbound.tick()
    told = site.heard(booking["id"])
    assert told["reservation_status"] == "CANCELED"
    assert told["canceled"] == {"cancellation_reason": "BROKEN_CHARGER", "who_canceled": "CPO"}


# --- configuration


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"evse_uids": ["E9"]}, "'E9' is no EVSE of 'LOC1'"),
        ({"evse_uids": ["E1", "e1"]}, "'e1' is there twice"),
        ({"tariff_ids": ["T9"]}, "'T9' is not in tariffs"),
        ({"terms": TERMS | {"early_start_time": None}}, "early_start_time: is needed"),
        ({"terms": {}}, "supported_access_methods"),
        ({"terms": TERMS | {"noshow_fee": True}}, "noshow_fee: true, and this version bills no"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, entry: Fields, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse_config(config_of(tmp_path, booking_locations=[location(**entry)]))
