"""Whole stories: the firmware in its VM, mosquitto with accounts, gateway, eMSP and meter.

One stage serves the stories that can follow each other; `settle` empties the EVSE before each.
What must hold is written here from the contract (UPLINK.md, OCPI) and the promises of the design;
energy is compared with the simulated meter's own register.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from host_tests.gateway_kit import Client as Ocpi
from host_tests.scenario_kit import HEAP, UP, Fields, Scene, board_token
from tools import build, journal
from tools.stage import DRIVERS, EVSE, LOCATION, METER, STATION, until
from tools.virtual_board import image
from tools.virtual_board.client import VirtualBoard

ALICE = DRIVERS["alice"]["uid"]
PLACE = {"location_id": LOCATION, "evse_uid": EVSE}


@pytest.fixture(scope="module")
def played(
    micropython: Path, mosquitto: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    with Scene(mosquitto, tmp_path_factory.mktemp("stage")) as scene:
        scene.begin()
        yield scene


def moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).replace(tzinfo=UTC).timestamp()


def now() -> float:
    return datetime.now(UTC).timestamp()


def billed_wh(cdr: Fields) -> int:
    return round(cdr["total_energy"] * 1000)


# --- the main story


def test_a_reservation_becomes_a_charge_and_a_cdr(scene: Scene) -> None:
    """Kept against a wrong card and a power cut, used by the right one, charged through another
    cut, stopped by the eMSP, billed to the Wh."""
    scene.fresh()
    first_wh, since, begun = scene.meter.wh(), scene.mark(), now()
    assert scene.reserve("alice", "MAIN-1") == "ACCEPTED"
    scene.status("RESERVED")
    session_id = scene.record(since, t="reserve")["session_id"]
    assert scene.session(session_id)["status"] == "RESERVATION"

    pins = scene.board.watch.mark()
    scene.show("bob")
    refused = scene.record(since, t="refused", what="card")
    assert (refused["why"], refused["evse"], refused["count"]) == ("reserved", 1, 1)
    assert scene.obey("START_SESSION", driver="bob", **PLACE) == "EVSE_OCCUPIED"
    scene.taken_away("bob")

    scene.power_cycle()
    scene.online()
    scene.status("RESERVED")
    since = scene.mark()
    scene.show("bob")
    scene.record(since, t="refused", what="card", why="reserved")
    assert scene.closings(pins) == []

    scene.plug("C")
    scene.show("alice")
    scene.board.wait(contactor=1, lock=1, timeout_s=20)
    start = scene.record(since, t="start")
    assert start["session_id"] == session_id
    assert (start["source"], start["auth_method"]) == ("card", "COMMAND")
    assert start["token"] == board_token("alice")
    until("ACTIVE", lambda: scene.session(session_id)["status"] == "ACTIVE")
    scene.charge(10)

    scene.board.power_off()
    assert scene.board.pins()["contactor_feedback"] == 0
    assert scene.board.pins()["lock_feedback"] == 1, "a motor lock stays where it is"
    scene.power_on()
    scene.board.wait(contactor=1, timeout_s=60)
    resumed = scene.record(since, t="event", what="resumed")
    assert (resumed["session_id"], resumed["resumes"]) == (session_id, 1)
    scene.charge(10)
    scene.status("CHARGING")

    pins = scene.board.watch.mark()
    assert scene.obey("STOP_SESSION", session_id=session_id) == "ACCEPTED"
    unlocked = scene.board.watch.wait_for(lambda e: e["ev"] == "lock" and not e["value"], 15, pins)
    assert scene.opened(pins)["t_ms"] < unlocked["t_ms"], "unlocked before the contactor opened"
    cdr = scene.cdr(session_id)
    scene.plug("A")
    held = scene.completed(session_id)
    scene.status("AVAILABLE")

    advance = scene.meter.wh() - first_wh
    assert advance >= 20
    assert billed_wh(cdr) == round(held["kwh"] * 1000) == advance
    stop = scene.record(since, t="stop", session_id=session_id)
    assert (stop["total_wh"], stop["cause"], stop["unobserved_wh"]) == (advance, "remote", 0)
    periods = scene.facts(since, t="period", session_id=session_id)
    assert sum(period["wh"] for period in periods) == advance
    assert [p["kind"] for p in periods][:3] == ["charging", "not_offered", "charging"]
    assert stop["register_wh"] == start["register_wh"] + advance == scene.meter.wh()
    assert scene.conserved() == scene.meter.wh()
    assert begun <= moment(cdr["start_date_time"]) < moment(cdr["end_date_time"]) <= now()
    scene.whole()
    assert scene.valid() > 20


# --- cards


def authorised(scene: Scene, uid: str, downs: int) -> str:
    """The gateway's word on this card in a down message, once the board has it."""

    def asked() -> str | None:
        for raw in scene.downs()[downs:]:
            for command in json.loads(raw.split(b"\n")[1]).get("commands", []):
                if command["type"] == "AUTHORIZE" and command["data"]["uid"] == uid:
                    return command["data"]["allowed"]
        return None

    word = until(f"AUTHORIZE of {uid}", asked)
    until("the card waits no longer", lambda: "authorize" not in scene.ups()[-1][0])
    return word


def test_a_card_starts_and_stops_without_a_reservation(scene: Scene) -> None:
    """Carol's: whoever an eMSP commanded something for is authorised by that for 15 minutes."""
    scene.fresh()
    first_wh, since = scene.meter.wh(), scene.mark()
    scene.plug("C")
    scene.show("carol")
    scene.board.wait(contactor=1, timeout_s=20)
    start = scene.record(since, t="start")
    assert (start["source"], start["auth_method"]) == ("card", "WHITELIST")
    assert start["token"] == board_token("carol")
    scene.charge(5)
    pins = scene.board.watch.mark()
    scene.show("bob")  # not his session
    scene.record(since, t="refused", what="card", why="occupied")
    assert scene.board.pins()["contactor"] == 1
    scene.show("carol")
    scene.opened(pins)
    stop = scene.record(since, t="stop", session_id=start["session_id"])
    assert (stop["cause"], stop["token"]) == ("local", board_token("carol"))
    assert billed_wh(scene.cdr(start["session_id"])) == scene.meter.wh() - first_wh
    scene.whole()


def test_unknown_and_blocked_cards_do_not_start(scene: Scene) -> None:
    scene.fresh()
    pins, since = scene.board.watch.mark(), scene.mark()
    scene.plug("C")
    downs = len(scene.downs())
    scene.board.token("04DEADBEEF0080")
    assert authorised(scene, "04DEADBEEF0080", downs) == "NOT_ALLOWED"
    refused = scene.record(since, t="refused", what="card")
    assert refused["why"] == "unauthorised"

    scene.emsp_post("tokens/bob", {"valid": False})
    try:
        downs = len(scene.downs())
        scene.show("bob")
        assert authorised(scene, DRIVERS["bob"]["uid"], downs) == "BLOCKED"
    finally:
        scene.emsp_post("tokens/bob", {"valid": True})
    assert scene.closings(pins) == []
    assert scene.facts(since, t="start") == []


# --- remote


def test_a_remote_start_waits_for_the_plug(scene: Scene) -> None:
    since, pins = scene.mark(), scene.board.watch.mark()
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "ACCEPTED"
    assert scene.closings(pins) == [] and scene.facts(since, t="start") == []
    scene.plug("C")
    scene.board.wait(contactor=1, lock=1, timeout_s=20)
    start = scene.record(since, t="start")
    assert (start["source"], start["auth_method"]) == ("remote", "COMMAND")

    assert scene.obey("START_SESSION", driver="bob", **PLACE) == "EVSE_OCCUPIED"
    assert scene.reserve("bob", "OCCUPIED-1") == "EVSE_OCCUPIED"
    unknown = scene.command("STOP_SESSION", session_id="no-such-session")
    assert unknown["response"]["result"] == "UNKNOWN_SESSION"
    assert scene.operator("STOP_SESSION", session_id="no-such-session") == "REJECTED"
    assert scene.board.pins()["contactor"] == 1

    pins = scene.board.watch.mark()
    unlock = {**PLACE, "connector_id": "1"}
    assert scene.obey("UNLOCK_CONNECTOR", **unlock) == "ACCEPTED"
    unlocked = scene.board.watch.wait_for(lambda e: e["ev"] == "lock" and not e["value"], 15, pins)
    assert scene.opened(pins)["t_ms"] < unlocked["t_ms"]
    assert scene.board.pins()["lock_feedback"] == 0
    scene.record(since, t="stop", session_id=start["session_id"])
    scene.completed(start["session_id"])
    again = scene.command("STOP_SESSION", session_id=start["session_id"])
    assert again["response"]["result"] == "REJECTED"


def test_a_lock_that_is_stuck_fails_the_unlocking(scene: Scene) -> None:
    since = scene.mark()
    scene.plug("C")
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "ACCEPTED"
    scene.board.wait(contactor=1, lock_feedback=1, timeout_s=20)
    scene.board.fault("lock_stuck")
    pins = scene.board.watch.mark()
    asked = scene.command("UNLOCK_CONNECTOR", **PLACE, connector_id="1")
    scene.opened(pins)
    scene.board.advance(8_000)  # of the ten seconds that it is given
    assert scene.result(asked) == "FAILED"
    assert scene.board.pins()["lock_feedback"] == 1
    fault = scene.record(since, t="event", what="fault")
    assert fault["fault"] == "lock_stuck"
    scene.status("OUTOFORDER")
    scene.board.fault("lock_stuck", on=False)
    scene.record(since, t="event", what="fault_cleared", fault="lock_stuck")
    scene.plug("A")
    scene.status("AVAILABLE")


# --- reservations


def test_cancelled_replaced_and_refused_reservations(scene: Scene) -> None:
    scene.fresh()
    since = scene.mark()
    past = scene.command(
        "RESERVE_NOW", driver="alice", **PLACE, reservation_id="OLD", expiry_s=-5
    )
    assert past["response"]["result"] == "REJECTED"
    late = {"evse": 1, "reservation_id": "late", "token": board_token("alice"), "expiry_ms": 1}
    assert scene.operator("RESERVE_NOW", **late) == "REJECTED"
    assert scene.obey("CANCEL_RESERVATION", reservation_id="NEVER") == "UNKNOWN_RESERVATION"

    assert scene.reserve("alice", "R-1") == "ACCEPTED"
    first = scene.record(since, t="reserve")
    assert scene.reserve("bob", "R-2") == "EVSE_OCCUPIED"
    assert scene.reserve("bob", "R-1", 1800) == "ACCEPTED"  # the same id: replaced
    second = scene.record(since, t="reserve", token=board_token("bob"))
    assert second["session_id"] == first["session_id"]
    assert second["reservation_id"] == first["reservation_id"]
    assert second["expiry_ms"] > first["expiry_ms"]
    pins = scene.board.watch.mark()
    scene.plug("C")
    scene.show("alice")  # it was hers
    scene.record(since, t="refused", what="card", why="reserved")
    assert scene.closings(pins) == []
    scene.plug("A")

    assert scene.obey("CANCEL_RESERVATION", reservation_id="R-1") == "ACCEPTED"
    release = scene.record(since, t="release")
    assert release["cause"] == "cancelled_by_emsp"
    held = scene.completed(first["session_id"])
    assert held["kwh"] == 0
    scene.status("AVAILABLE")
    assert scene.obey("CANCEL_RESERVATION", reservation_id="R-1") == "UNKNOWN_RESERVATION"
    assert len(scene.facts(since, t="release")) == 1
    scene.whole()


@pytest.mark.parametrize("power", ["on", "off"])
def test_a_reservation_ends_with_its_expiry(scene: Scene, power: str) -> None:
    """With the power away over the moment of expiry, too, and the clock lost with it."""
    since = scene.mark()
    begun = now()
    assert scene.reserve("alice", f"SHORT-{power}", 4) == "ACCEPTED"
    session_id = scene.record(since, t="reserve")["session_id"]
    scene.status("RESERVED")
    if power == "off":
        scene.board.power_off()
        until("the expiry", lambda: now() > begun + 5)
        scene.power_on()
    release = scene.record(since, t="release")
    assert (release["cause"], release["session_id"]) == ("expired", session_id)
    held = scene.completed(session_id)
    assert held["kwh"] == 0
    scene.status("AVAILABLE")
    assert now() >= begun + 4
    scene.whole()


# --- bad input on the wire


def test_nobody_else_commands_the_board(scene: Scene) -> None:
    """Forged, reflected, repeated, retained, of another boot, expired, too long-lived, garbage,
    oversized: nothing moves, and each is counted by its cause. All of it comes under the gateway's
    own account."""
    scene.plug("C")
    scene.fresh()
    since, pins = scene.mark(), scene.board.watch.mark()
    begin: Fields = {"evse": 1, "token": board_token("alice")}
    reserve: Fields = {
        "evse": 1, "reservation_id": "evil", "token": board_token("bob"),
        "expiry_ms": int((now() + 900) * 1000),
    }  # fmt: skip

    def evil(**changes: Any) -> Fields:
        orders = scene.order("START_SESSION", **begin), scene.order("RESERVE_NOW", **reserve)
        return scene.header(*orders, **changes)

    def counted(what: str, why: str) -> int:
        count: int = scene.record(since, t="refused", what=what, why=why)["count"]
        return count

    # forged: under a stranger's key; a bit of a true message; the board's own words
    scene.speak(scene.sign(evil(), key=bytes(32)))
    assert counted("message", "forged") == 1
    true = scene.downs()[-1]
    scene.speak(true[:-1] + bytes([true[-1] ^ 1]))
    scene.speak(next(m.payload for m in reversed(scene.ear.messages) if m.topic == UP))
    scene.speak(true)
    assert counted("message", "repeated") == 1
    # no message at all
    for garbage in (b"0" * 64 + b"\n", b"", b"\0" * 65, b"\xff" * 300, scene.sign(b"[1,")):
        scene.speak(garbage)
    assert counted("message", "malformed") == 1
    scene.speak(scene.sign(json.dumps(evil(pad="x" * 4200)).encode()))
    scene.speak(b"x" * 20_000)
    # true words that are too late, or good for too long
    scene.speak(scene.sign(scene.header(scene.order("START_SESSION", exp_s=-60, **begin))))
    assert counted("command", "expired") == 1
    scene.online()
    scene.speak(scene.sign(scene.header(scene.order("START_SESSION", exp_s=7200, **begin))))
    assert counted("command", "not_fresh") == 1
    # true and new in all but the broker's retained bit, heard when the link comes back
    scene.board.net(wifi="down")
    until("offline", lambda: not scene.station()["online"], 30)
    scene.speak(scene.sign(evil(n=scene.n() + 50)), retain=True)
    scene.board.net(wifi="ok")
    assert counted("message", "retained") == 1
    scene.speak(b"", retain=True)  # the broker forgets it, the board hears an empty message
    scene.online()
    # a quarter of an hour later the others of each cause are on record, too
    scene.board.advance(900_000)
    for why, count in (("forged", 3), ("malformed", 8), ("retained", 1)):
        wanted = {"t": "refused", "what": "message", "why": why}
        until(why, lambda c=count, w=wanted: sum(r["count"] for r in scene.facts(since, **w)) == c)
    scene.record(since, t="time", step=True)  # the gateway's time again
    # of a boot that is over
    old = scene.sign(evil(n=scene.n() + 50))
    scene.fresh()
    scene.speak(old)
    assert counted("message", "other_boot") == 1

    assert scene.closings(pins) == []
    for t in ("start", "reserve", "result"):
        assert scene.facts(since, t=t) == []
    assert scene.board.pins()["lock"] == 0
    scene.whole()


def test_an_id_means_one_command(scene: Scene) -> None:
    """The same id again changes nothing; with another body it is REJECTED."""
    since = scene.mark()
    first = scene.order("SET_AVAILABILITY", evse=1, operative=False)
    scene.speak(scene.sign(scene.header(first)))
    assert scene.record(since, t="result", command_id=first["id"])["result"] == "ACCEPTED"
    scene.status("INOPERATIVE")
    scene.online()
    scene.speak(scene.sign(scene.header(first)))
    scene.online()
    other = first | {"data": {"evse": 1, "operative": True}}
    scene.speak(scene.sign(scene.header(other)))
    until("REJECTED", lambda: scene.facts(since, t="result", command_id=first["id"])[1:])
    results = scene.facts(since, t="result", command_id=first["id"])
    assert [result["result"] for result in results] == ["ACCEPTED", "REJECTED"]
    assert scene.evse_status() == "INOPERATIVE"
    assert scene.operator("SET_AVAILABILITY", evse=1, operative=True) == "ACCEPTED"
    scene.status("AVAILABLE")


# --- links and gateways that die


def test_charging_goes_on_without_broker_and_gateway(scene: Scene) -> None:
    """SIGKILL for both: the reserved card starts, others do not; later every record arrives once,
    and a gateway killed again over the same database tells nobody twice."""
    scene.fresh()
    first_wh, since = scene.meter.wh(), scene.mark()
    assert scene.reserve("alice", "OFFLINE-1") == "ACCEPTED"
    session_id = scene.record(since, t="reserve")["session_id"]
    lost = scene.board.console().count("trouble in link")
    scene.broker.kill()
    scene.gateway.kill()
    scene.offline(lost + 1)

    pins = scene.board.watch.mark()
    scene.show("bob")
    scene.taken_away("bob")
    scene.plug("C")
    scene.show("alice")
    scene.board.wait(contactor=1, timeout_s=20)
    scene.charge(5)
    scene.show("alice")
    scene.opened(pins)
    scene.board.wait(lock_feedback=0, timeout_s=20)
    closed = scene.closings(pins)
    assert len(closed) == 1, "only Alice's card closes it"
    scene.show("bob")  # nothing is reserved now, but nobody can be asked

    scene.broker.start()
    scene.start_gateway()
    scene.ear.ready()
    refused = scene.record(since, t="refused", why="offline")
    assert refused["what"] == "card"
    scene.record(since, t="refused", why="reserved")
    start = scene.record(since, t="start")
    assert (start["session_id"], start["auth_method"]) == (session_id, "COMMAND")
    scene.record(since, t="stop", session_id=session_id)
    advance = scene.meter.wh() - first_wh
    assert billed_wh(scene.cdr(session_id)) == advance >= 5
    assert scene.closings(pins) == closed

    scene.gateway.kill()
    scene.plug("A")
    scene.start_gateway()
    scene.online()
    scene.status("AVAILABLE")
    scene.completed(session_id)
    assert billed_wh(scene.cdr(session_id)) == advance
    scene.whole()


# --- OCPI as others get it wrong


def test_ocpi_requests_that_cannot_be_carried_out(scene: Scene) -> None:
    state = json.loads((scene.folder / "emsp" / "state.json").read_text())
    root = f"http://127.0.0.1:{scene.gateway.ready['port']}"
    routing = {
        "OCPI-from-country-code": "NL", "OCPI-from-party-id": "EMS",
        "OCPI-to-country-code": "NL", "OCPI-to-party-id": "WLK",
    }  # fmt: skip
    emsp, stranger = Ocpi(root, state["token_c"]), Ocpi(root, "stranger")
    token = state["tokens"]["alice"]
    body: Fields = {
        "response_url": "http://127.0.0.1:9/never", "token": token, "reservation_id": "BAD-1",
        "expiry_date": "2099-01-01T00:00:00Z", **PLACE,
    }  # fmt: skip
    since = scene.mark()

    def ask(client: Ocpi, **kw: Any) -> tuple[int, int, Any]:
        return client.ask("POST", "commands/RESERVE_NOW", headers=routing, **kw)

    assert ask(stranger, body=body)[0] == 401
    bare = httpx.post(f"{root}/ocpi/2.2.1/commands/RESERVE_NOW", json=body)
    assert bare.status_code == 401
    for broken in (b"{", b"", b"\xff"):
        assert ask(emsp, content=broken)[0] == 400
    assert ask(emsp, content=b"[]")[:2] == (200, 2001)
    for field, wanted in (("location_id", 2003), ("evse_uid", 2001)):
        http, code, data = ask(emsp, body=body | {field: "NOWHERE"})
        assert (http, code) == (200, wanted), field
        assert data["result"] == "REJECTED"

    scene.board.power_off()
    until("offline", lambda: not scene.station()["online"], 30)
    http, code, data = ask(emsp, body=body)
    assert (http, data["result"]) == (200, "REJECTED"), "nobody there: said at once"
    assert code == 1000
    scene.power_on()
    scene.online()
    assert scene.facts(since, t="reserve") == [] and scene.facts(since, t="result") == []


# --- the power fails at the flash


# A transition's group takes 12 to 20 programs and erases, twice as many where it opens a segment.


@pytest.mark.parametrize("position", [1, 6, 11, 13])
def test_a_reservation_survives_a_cut_in_its_writing(scene: Scene, position: int) -> None:
    """Done before the cut or, when the gateway repeats it, after: once, and told once."""
    since = scene.mark()
    asked = scene.cut_at(
        f"flash_op:{position}",
        lambda: scene.command(
            "RESERVE_NOW", driver="alice", **PLACE, reservation_id=f"CUT-{position}", expiry_s=900
        ),
    )
    scene.power_on()
    assert scene.result(asked) == "ACCEPTED"
    scene.online()
    scene.status("RESERVED")
    assert len(scene.facts(since, t="reserve")) == 1
    assert len(scene.facts(since, t="result")) == 1
    scene.whole()


@pytest.mark.parametrize(
    "when", [*(f"flash_op:{n}" for n in (1, 10, 16, 20, 24, 30)), "contactor_close:1"]
)
def test_a_start_survives_a_cut(scene: Scene, when: str) -> None:
    """No contactor closes without a start that outlives the cut; what was not seen energised
    before the cut is not energised after it; what began, ends; all energy is somebody's."""
    assert scene.reserve("alice", f"START-{when}") == "ACCEPTED"
    scene.plug("C")
    scene.online()
    since, pins = scene.mark(), scene.board.watch.mark()
    scene.cut_at(when, lambda: scene.show("alice"))
    closed = scene.closings(pins)
    back = scene.board.watch.mark()
    scene.taken_away("alice")
    scene.power_on()
    scene.online()
    starts = scene.facts(since, t="start")
    assert starts or not closed, "a contactor closed without a durable start"
    if when.startswith("contactor"):
        assert len(closed) == 1
    if not starts:
        scene.status("RESERVED")
        assert scene.closings(back) == []
        scene.conserved()
        return
    session_id = starts[0]["session_id"]
    if scene.facts(since, t="status", session_id=session_id):
        scene.board.advance(5_000)  # the least time off before it goes on
        scene.record(since, t="event", what="resumed", session_id=session_id)
        assert scene.obey("STOP_SESSION", session_id=session_id) == "ACCEPTED"
    stop = scene.record(since, t="stop", session_id=session_id)
    if not scene.facts(since, t="status", session_id=session_id):
        assert stop["cause"] == "power_loss"
        assert scene.closings(back) == []
    assert billed_wh(scene.cdr(session_id)) == stop["total_wh"]
    scene.completed(session_id)
    scene.online()
    assert scene.conserved() == scene.meter.wh()
    scene.whole()


@pytest.mark.parametrize("position", [1, 12, 20, 30, 40])
def test_a_stop_survives_a_cut_in_its_writing(scene: Scene, position: int) -> None:
    first_wh, since = scene.meter.wh(), scene.mark()
    scene.plug("C")
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "ACCEPTED"
    session_id = scene.record(since, t="status", status="CHARGING")["session_id"]
    scene.charge(3)
    scene.online()
    asked = scene.cut_at(
        f"flash_op:{position}", lambda: scene.command("STOP_SESSION", session_id=session_id)
    )
    back = scene.board.watch.mark()
    scene.power_on()
    assert scene.result(asked) == "ACCEPTED"
    scene.record(since, t="stop", session_id=session_id)
    assert billed_wh(scene.cdr(session_id)) == scene.meter.wh() - first_wh
    assert scene.closings(back) == [], "told to stop, and closed again"
    scene.board.wait(lock_feedback=0)
    assert len(scene.facts(since, t="stop")) == 1
    assert scene.conserved() == scene.meter.wh()
    scene.whole()


# --- the chip and the button


@pytest.mark.parametrize("how", ["panic", "starved"])
def test_a_chip_that_fails_opens_the_contactor_and_comes_back(scene: Scene, how: str) -> None:
    """Panic, and a VM that is frozen until the watchdog bites: open, back, the session goes on."""
    first_wh, since = scene.meter.wh(), scene.mark()
    scene.plug("C")
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "ACCEPTED"
    session_id = scene.record(since, t="status", status="CHARGING")["session_id"]
    scene.charge(2)
    pins = scene.board.watch.mark()
    if how == "panic":
        scene.board.reset("panic")
    else:
        scene.freeze()
    scene.opened(pins)
    boot = scene.record(since, t="boot")
    scene.board.advance(5_000)  # the least time off before it goes on
    assert boot["cause"] == {"panic": "panic", "starved": "watchdog"}[how]
    scene.record(since, t="event", what="resumed", session_id=session_id)
    scene.board.wait(contactor=1, lock_feedback=1, timeout_s=20)
    scene.charge(2)
    assert scene.obey("STOP_SESSION", session_id=session_id) == "ACCEPTED"
    assert billed_wh(scene.cdr(session_id)) == scene.meter.wh() - first_wh
    scene.whole()


def test_the_emergency_button_opens_at_once(scene: Scene) -> None:
    since = scene.mark()
    scene.plug("C")
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "ACCEPTED"
    scene.board.wait(contactor=1, timeout_s=20)
    pins = scene.board.watch.mark()
    scene.board.fault("estop")
    scene.opened(pins)
    stop = scene.record(since, t="stop")
    assert stop["cause"] == "emergency"
    assert scene.obey("START_SESSION", driver="alice", **PLACE) == "EVSE_INOPERATIVE"
    assert scene.closings(pins) == []


def setting(scene: Scene, since: int, config: Fields | None = None, **secrets: Any) -> Fields:
    """SET_CONFIG as far as the boot in which it is tried; the queued command."""
    scene.fresh()  # the heap of a boot in which nothing was made anew
    boot = scene.board.boot()
    data = {"config": config, "secrets": secrets or None}
    data = {name: value for name, value in data.items() if value}
    queued = scene.admin(f"stations/{STATION}/commands", {"type": "SET_CONFIG", "data": data})
    until("the boot of the trial", lambda: scene.board.boot() > boot, 30)
    return queued


def test_configuration_and_key_from_afar(scene: Scene) -> None:
    """In the heap of a board: one that is kept, a certificate (of a CA with an EC key); one that
    is refused; one that reaches nobody and is rolled back. Then another key."""
    since = scene.mark()
    site = json.loads((scene.folder / "config.json").read_text())
    ca = "A" * 600  # as long as the base64 of a P-256 certificate

    def result(queued: Fields) -> str:
        def word() -> str | None:
            return scene.admin(f"commands/{queued['id']}")["result"]

        return until("the outcome", word, 40)

    assert result(setting(scene, since, site | {"live_s": 2})) == "ACCEPTED"
    assert result(setting(scene, since, tls={"ca": ca})) == "ACCEPTED"
    bad = site | {"evses": [site["evses"][0] | {"meter": "sdm9000"}]}
    assert result(setting(scene, since, bad)) == "REJECTED"
    nowhere = site | {"link": site["link"] | {"port": 1}}
    lost = scene.board.console().count("trouble in link")
    queued = setting(scene, since, nowhere)
    scene.offline(lost + 1)
    scene.board.advance(600_000)
    assert result(queued) == "FAILED"
    told = scene.facts(since, t="event", what="config")
    assert [e["outcome"] for e in told] == ["kept", "kept", "refused", "rolled_back"]
    assert "evses[0].meter" in told[2]["why"]

    scene.online()
    assert scene.operator("ROTATE_KEY") == "ACCEPTED"
    until("the new key", lambda: scene.ups()[-1][0]["kid"] == 2, 30)
    scene.power_cycle()
    scene.online()
    assert scene.ups()[-1][0]["kid"] == json.loads(scene.downs()[-1].split(b"\n")[1])["kid"] == 2
    scene.whole()


def test_everything_that_was_said_keeps_the_contract(scene: Scene) -> None:
    """All messages of all stories above, both ways, against the JSON Schemas; and the board's
    flash holds, byte for byte and link for link, what the gateway has."""
    assert scene.valid() > 200
    scene.whole()
    known = len(scene.records())
    scene.board.power_off()
    found = journal.read_image(scene.board.flash)
    life = found.segments[0].checkpoint["journal"]
    theirs = journal.gateway_records(scene.folder / "gateway.sqlite3", STATION, life)
    assert len(theirs) == known
    assert journal.verify(found, journal.chain_key(scene.key, STATION), theirs) == []


# --- a board that cannot start


def test_a_bad_config_is_named_and_the_contactor_stays_open(
    micropython: Path, tmp_path: Path
) -> None:
    """Field and remedy on the console; a good one afterwards starts."""
    good: Fields = {
        "station_id": STATION, "board": "virtual", "live_s": 2,
        "link": {"kind": "mqtt", "host": "127.0.0.1", "port": 1, "insecure": True},
        "buses": {"rs485": {"kind": "rtu", "uart": 1}},
        "evses": [{"n": 1, "meter": METER, "bus": "rs485", "max_a": 32}],
    }  # fmt: skip
    evse = good["evses"][0]
    bad = [
        (good | {"evses": [evse | {"meter": "sdm9000"}]}, "evses[0].meter", "tools.meter list"),
        ({k: v for k, v in good.items() if k != "buses"} | {}, "evses[0].bus", "use one of"),
        ({k: v for k, v in good.items() if k != "station_id"}, "config.station_id", "add it"),
        (good | {"live_s": "2"}, "config.live_s", "whole number"),
    ]
    secrets = {"kid": 1, "key": "00" * 32}
    files = build.build("virtual", good).files("a") | {
        "/slot": b"a", "/secrets.json": json.dumps(secrets).encode(),
    }  # fmt: skip
    files["/config.json"] = json.dumps(bad[0][0]).encode()
    with VirtualBoard(state=tmp_path / "board", files=files, heap=HEAP) as board:
        for config, field, remedy in [*bad, (good, "", "ready")]:
            board.power_off()
            seen = len(board.console())
            image.write_files(board.flash, {"/config.json": json.dumps(config).encode()})
            board.power_on()
            until(
                f"{field}: {remedy}",
                lambda f=field, r=remedy, s=seen: f in board.console()[s:]
                and r in board.console()[s:],
                20,
            )
            assert board.pins()["contactor"] == 0
        closings = [e for e in board.watch.events if e["ev"] == "contactor"]
        assert closings == []
