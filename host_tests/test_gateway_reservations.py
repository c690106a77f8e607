"""Reservations between eMSP, gateway and two boards: placed, replaced, moved, given back, undone.

The boards are reference boards (`uplink_peer`), written from the contract alone: they do what the
test says. What must hold is from OCPI 2.2.1 mod_commands and mod_sessions, and OCPI_NOTES where
the standard is silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from host_tests.gateway_kit import ADMIN, FakeEmsp, board_token, token, until
from host_tests.test_gateway_ocpi import Site
from host_tests.uplink_peer import Board


class Pair(Site):
    """One Location, E1 at DEMO-1 and E2 at DEMO-2, both free."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.second = Board("DEMO-2", "ab" * 32, unix_ms=self.board.unix_ms)
        self.second.hello()
        self.second.status("AVAILABLE")
        self.gateway.talk(self.second)
        self.boards = {"DEMO-1": self.board, "DEMO-2": self.second}

    def poll(self, *boards: Board) -> None:
        """These boards look for commands, and for the acknowledgement of what they wrote."""
        for board in boards or (self.board, self.second):
            board.write("event", what="alive")
            self.gateway.talk(board)

    def reserve(self, board: Board, session_id: str = "S1", **changes: Any) -> dict[str, Any]:
        """RESERVE_NOW that `board` accepts; the command as the board got it."""
        body = self.reserve_body(**changes)
        body = {name: value for name, value in body.items() if value is not None}
        assert self.command("RESERVE_NOW", body) == "ACCEPTED"
        self.poll(board)
        command = board.take("RESERVE_NOW")
        board.reserve(command, session_id)
        self.gateway.talk(board)
        until(lambda: self.gateway.idle())
        return command

    def release(self, board: Board, command: dict[str, Any], cause: str) -> None:
        data = command["data"]
        board.write(
            "release", evse=data["evse"], reservation_id=data["reservation_id"],
            session_id=data.get("session_id", "S1"), cause=cause,
        )  # fmt: skip

    def break_down(self, board: Board) -> None:
        board.write("event", what="fault", evse=1, fault="contactor_welded")
        board.live["1"] = {"status": "OUTOFORDER", "plugged": False}
        self.poll(board)

    def session(self) -> dict[str, Any]:
        _, _, (session,) = self.client.ask("GET", "sessions")
        return session

    def held(self) -> list[tuple[str, str]]:
        """(station, reservation_id) of what the operator sees reserved."""
        return [(r["station_id"], r["reservation_id"]) for r in self.gateway.admin("reservations")]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


ANY: dict[str, Any] = {"evse_uid": None}


# --- replaced


def test_replaced_at_another_board_the_new_one_first(pair: Pair) -> None:
    """Place the new, then release the old; the Session keeps its id and says where it is now."""
    first = pair.reserve(pair.board)
    body = pair.reserve_body(evse_uid="E2", response_url=pair.url(2))
    assert pair.command("RESERVE_NOW", body) == "ACCEPTED"
    pair.poll()
    second = pair.second.take("RESERVE_NOW")
    assert pair.board.commands == [], "the old one stands until the new one is sure"
    same = ("reservation_id", "token")
    assert [second["data"][k] for k in same] == [first["data"][k] for k in same]
    assert second["data"]["session_id"] == "S1"
    pair.second.reserve(second, "S1")
    pair.poll(pair.second, pair.board)
    release = pair.board.take("CANCEL_RESERVATION")
    assert release["data"] == {"reservation_id": first["data"]["reservation_id"], "by": "move"}
    pair.release(pair.board, first, "replaced")
    pair.board.result(release, "ACCEPTED")
    pair.poll()
    until(lambda: pair.results(2))
    assert (pair.results(1), pair.results(2)) == (["ACCEPTED"], ["ACCEPTED"])
    told = pair.session()
    assert (told["status"], told["id"], told["evse_uid"]) == ("RESERVATION", "S1", "E2")
    assert pair.held() == [("DEMO-2", "r1")]


@pytest.mark.parametrize("why", ["EVSE_OCCUPIED", "EVSE_INOPERATIVE", "REJECTED", "TIMEOUT"])
def test_a_replacement_that_fails_leaves_the_old_one(pair: Pair, why: str) -> None:
    first = pair.reserve(pair.board)
    body = pair.reserve_body(evse_uid="E2", response_url=pair.url(2))
    assert pair.command("RESERVE_NOW", body) == "ACCEPTED"
    pair.poll()
    second = pair.second.take("RESERVE_NOW")
    if why == "TIMEOUT":
        pair.gateway.clock.advance(20_000)
    else:
        pair.second.result(second, why)
        pair.poll()
    until(lambda: pair.results(2))
    assert pair.results(2) == [why]
    assert pair.board.commands == [] and pair.held() == [("DEMO-1", "r1")]
    told = pair.session()
    assert (told["status"], told["evse_uid"]) == ("RESERVATION", "E1")
    if why == "TIMEOUT":  # and where the new one comes all the same, it is taken back
        pair.second.reserve(second, "S1")
        pair.poll(pair.second)
        undo = pair.second.take("CANCEL_RESERVATION")
        assert undo["data"] == {"reservation_id": first["data"]["reservation_id"], "by": "move"}
        pair.release(pair.second, second, "replaced")
        pair.second.result(undo, "ACCEPTED")
        pair.poll()
        told = pair.session()
        assert (told["status"], told["evse_uid"]) == ("RESERVATION", "E1")
        assert pair.held() == [("DEMO-1", "r1")]
    cancel = {"response_url": pair.url(3), "reservation_id": "R1"}
    assert pair.command("CANCEL_RESERVATION", cancel) == "ACCEPTED"
    pair.poll(pair.board)
    pair.board.take("CANCEL_RESERVATION")


def test_a_late_replacement_on_the_same_board_becomes_the_old_one_again(pair: Pair) -> None:
    first = pair.reserve(pair.board)
    body = pair.reserve_body(token=token("04FF"), expiry_date=pair.date(1800))
    assert pair.command("RESERVE_NOW", body | {"response_url": pair.url(2)}) == "ACCEPTED"
    pair.poll(pair.board)
    late = pair.board.take("RESERVE_NOW")
    pair.gateway.clock.advance(20_000)
    until(lambda: pair.results(2))
    pair.board.reserve(late, "S1")
    pair.poll(pair.board)
    again = pair.board.take("RESERVE_NOW")
    wish = ("evse", "reservation_id", "token", "expiry_ms")
    assert [again["data"][k] for k in wish] == [first["data"][k] for k in wish]
    pair.board.reserve(again, "S1")
    pair.poll(pair.board)
    assert pair.session()["cdr_token"]["uid"] == board_token()["uid"]
    assert pair.results(1) == ["ACCEPTED"] and pair.results(2) == ["TIMEOUT"]


def test_the_old_board_must_be_there_to_let_go(pair: Pair) -> None:
    pair.reserve(pair.board)
    pair.gateway.context.southbound.offline_hint("DEMO-1")
    assert pair.command("RESERVE_NOW", pair.reserve_body(evse_uid="E2")) == "REJECTED"


# --- no EVSE named


def test_no_evse_named_the_next_one_is_asked(pair: Pair) -> None:
    """The picture was old: the first says no, the second gets it, the eMSP hears of one result."""
    body = {k: v for k, v in pair.reserve_body().items() if k != "evse_uid"}
    assert pair.command("RESERVE_NOW", body) == "ACCEPTED"
    pair.poll(pair.board)
    pair.board.result(pair.board.take("RESERVE_NOW"), "EVSE_OCCUPIED")
    pair.poll()
    command = pair.second.take("RESERVE_NOW")
    pair.second.reserve(command, "S1")
    pair.poll()
    until(pair.results)
    assert pair.results() == ["ACCEPTED"] and pair.session()["evse_uid"] == "E2"


def test_no_evse_named_and_all_say_no(pair: Pair) -> None:
    body = {k: v for k, v in pair.reserve_body().items() if k != "evse_uid"}
    assert pair.command("RESERVE_NOW", body) == "ACCEPTED"
    for board in (pair.board, pair.second):
        pair.poll()
        board.result(board.take("RESERVE_NOW"), "EVSE_OCCUPIED")
    pair.poll()
    until(pair.results)
    assert pair.results() == ["EVSE_OCCUPIED"] and pair.held() == []


def test_a_reserved_evse_that_fails_moves_where_none_was_named(pair: Pair) -> None:
    """One Session id, from one board to the other and to the charge there; and one CDR."""
    first = pair.reserve(pair.board, **ANY)
    pair.break_down(pair.board)
    pair.poll(pair.second)
    second = pair.second.take("RESERVE_NOW")
    assert second["data"]["session_id"] == "S1"
    pair.second.reserve(second, "S1")
    pair.poll(pair.second, pair.board)
    release = pair.board.take("CANCEL_RESERVATION")
    pair.release(pair.board, first, "replaced")
    pair.board.result(release, "ACCEPTED")
    pair.poll()
    told = pair.session()
    assert (told["status"], told["evse_uid"]) == ("RESERVATION", "E2")
    pair.second.start("S1", board_token(), reservation_id=first["data"]["reservation_id"])
    pair.second.period("S1", 500, 60_000)
    pair.second.stop("S1")
    pair.poll()
    until(pair.gateway.idle)
    assert pair.session()["status"] == "COMPLETED"
    _, _, (cdr,) = pair.client.ask("GET", "cdrs")
    assert cdr["id"] == "S1" and cdr["cdr_location"]["evse_uid"] == "E2"
    assert cdr["start_date_time"] < pair.session()["start_date_time"]
    assert pair.results() == ["ACCEPTED"], "the eMSP sees a move, not an end"


def test_given_back_by_its_board_and_placed_elsewhere(pair: Pair) -> None:
    """The gateway was away while the EVSE failed: no end is told before the other has answered."""
    first = pair.reserve(pair.board, **ANY)
    pair.board.live["1"] = {"status": "OUTOFORDER", "plugged": False}
    pair.release(pair.board, first, "cancelled_by_cpo")
    pair.poll()
    assert pair.session()["status"] == "RESERVATION"
    pair.second.reserve(pair.second.take("RESERVE_NOW"), "S1")
    pair.poll()
    assert (pair.session()["status"], pair.session()["evse_uid"]) == ("RESERVATION", "E2")
    assert pair.results() == ["ACCEPTED"]


def test_nowhere_to_move_it_is_given_back(pair: Pair) -> None:
    first = pair.reserve(pair.board, **ANY)
    pair.second.status("CHARGING", plugged=True)
    pair.poll(pair.second)
    pair.break_down(pair.board)
    pair.poll(pair.second)
    assert pair.second.commands == []
    pair.release(pair.board, first, "cancelled_by_cpo")
    pair.poll()
    until(lambda: len(pair.results()) == 2)
    assert pair.results() == ["ACCEPTED", "CANCELED_RESERVATION"]
    assert pair.session()["status"] == "COMPLETED"


@pytest.mark.parametrize("changes", [ANY, {}], ids=["any", "named"])
def test_what_a_board_forgot_with_its_journal_moves_or_is_given_back(
    pair: Pair, changes: dict[str, Any]
) -> None:
    pair.reserve(pair.board, **changes)
    anew = Board(unix_ms=pair.board.unix_ms + 60_000)
    anew.hello()
    anew.write("event", what="journal_new", why="rebuilt")
    anew.write("lost", **{"class": "rebuilt"})
    anew.status("AVAILABLE")
    pair.gateway.talk(anew)
    if changes:  # no EVSE was named
        pair.poll(pair.second)
        pair.second.reserve(pair.second.take("RESERVE_NOW"), "S1")
        pair.gateway.talk(pair.second)
        assert pair.held() and pair.session()["status"] == "RESERVATION"
        assert pair.session()["evse_uid"] == "E2" and pair.results() == ["ACCEPTED"]
        return
    until(pair.gateway.idle)
    assert pair.held() == [] and pair.session()["status"] == "COMPLETED"
    assert pair.results() == ["ACCEPTED", "CANCELED_RESERVATION"]


def test_the_other_says_no_after_it_was_given_back(pair: Pair) -> None:
    first = pair.reserve(pair.board, **ANY)
    pair.release(pair.board, first, "cancelled_by_cpo")
    pair.poll()
    pair.second.result(pair.second.take("RESERVE_NOW"), "EVSE_OCCUPIED")
    pair.poll()
    until(lambda: len(pair.results()) == 2)
    assert pair.results() == ["ACCEPTED", "CANCELED_RESERVATION"]
    assert pair.session()["status"] == "COMPLETED"


def test_cancelled_while_it_moves(pair: Pair) -> None:
    """The eMSP's cancellation wins; what the other board accepts after it is taken back."""
    first = pair.reserve(pair.board, **ANY)
    pair.break_down(pair.board)
    pair.poll(pair.second)
    coming = pair.second.take("RESERVE_NOW")
    cancel = {"response_url": pair.url(2), "reservation_id": "R1"}
    assert pair.command("CANCEL_RESERVATION", cancel) == "ACCEPTED"
    pair.poll(pair.board)
    order = pair.board.take("CANCEL_RESERVATION")
    pair.release(pair.board, first, "cancelled_by_emsp")
    pair.board.result(order, "ACCEPTED")
    pair.poll(pair.board)
    until(lambda: pair.results(2))
    pair.second.reserve(coming, "S1")
    pair.poll(pair.second)
    undo = pair.second.take("CANCEL_RESERVATION")
    pair.release(pair.second, coming, "cancelled_by_cpo")
    pair.second.result(undo, "ACCEPTED")
    pair.poll()
    until(pair.gateway.idle)
    assert (pair.results(1), pair.results(2)) == (["ACCEPTED"], ["ACCEPTED"])
    assert pair.session()["status"] == "COMPLETED" and pair.held() == []


def test_a_named_evse_that_fails_is_given_back(pair: Pair) -> None:
    first = pair.reserve(pair.board)
    pair.break_down(pair.board)
    pair.poll()
    assert pair.second.commands == []
    pair.release(pair.board, first, "cancelled_by_cpo")
    pair.poll()
    until(lambda: len(pair.results()) == 2)
    assert pair.results() == ["ACCEPTED", "CANCELED_RESERVATION"]


# --- cancelled by the CPO


def test_the_operator_cancels(pair: Pair) -> None:
    """CANCELED_RESERVATION to the response_url of the RESERVE_NOW; it does not move instead."""
    first = pair.reserve(pair.board, **ANY)
    (shown,) = pair.gateway.admin("reservations")
    assert (shown["sender"], shown["session_id"], shown["evse"]) == ("NL-EMS", "S1", 1)
    url = f"{pair.gateway.url}/admin/reservations/{shown['id']}/cancel"
    bearer = {"Authorization": f"Bearer {ADMIN}"}
    assert httpx.post(url).status_code == 401
    assert httpx.post(url, headers=bearer).status_code == 202
    pair.poll()
    order = pair.board.take("CANCEL_RESERVATION")
    assert order["data"] == {"reservation_id": first["data"]["reservation_id"], "by": "cpo"}
    pair.release(pair.board, first, "cancelled_by_cpo")
    pair.board.result(order, "ACCEPTED")
    pair.poll()
    until(lambda: len(pair.results()) == 2)
    assert pair.results() == ["ACCEPTED", "CANCELED_RESERVATION"]
    assert pair.second.commands == [] and pair.session()["status"] == "COMPLETED"
    assert httpx.post(url, headers=bearer).status_code == 404


# --- too late


def test_what_was_told_as_timeout_does_not_appear(pair: Pair) -> None:
    """No Session, no CDR of a reservation that the eMSP was told to have failed."""
    assert pair.command("RESERVE_NOW", pair.reserve_body()) == "ACCEPTED"
    pair.poll(pair.board)
    late = pair.board.take("RESERVE_NOW")
    pair.gateway.clock.advance(20_000)
    until(pair.results)
    pair.board.reserve(late, "S1")
    pair.poll(pair.board)
    undo = pair.board.take("CANCEL_RESERVATION")
    pair.release(pair.board, late, "cancelled_by_cpo")
    pair.board.result(undo, "ACCEPTED")
    pair.poll(pair.board)
    until(pair.gateway.idle)
    assert pair.client.ask("GET", "sessions")[2] == [] == pair.client.ask("GET", "cdrs")[2]
    assert pair.emsp.pushes("PUT", "sessions") == [] and pair.results() == ["TIMEOUT"]


def test_undoing_has_no_expiry(pair: Pair) -> None:
    """The board is away for an hour with what must be taken back: it is told when it returns."""
    body = pair.reserve_body(expiry_date=pair.date(9000))
    assert pair.command("RESERVE_NOW", body) == "ACCEPTED"
    pair.poll(pair.board)
    late = pair.board.take("RESERVE_NOW")
    pair.gateway.clock.advance(20_000)
    until(pair.results)
    pair.board.reserve(late, "S1")
    pair.gateway.context.southbound.handle("DEMO-1", pair.board.message(limit=9), "http")
    for _ in range(100):  # its answer was lost, and the board is gone
        pair.gateway.clock.advance(36_000)
        pair.gateway.context.southbound.tick()
    pair.board.sleep(3_600_000)
    for _ in range(2):  # the ack first
        pair.poll(pair.board)
    undo = pair.board.take("CANCEL_RESERVATION")
    assert undo["exp"] > pair.gateway.clock()


def test_a_late_start_that_waits_for_its_plug_is_taken_back(pair: Pair) -> None:
    assert pair.command("START_SESSION", pair.reserve_body()) == "ACCEPTED"
    pair.poll(pair.board)
    late = pair.board.take("START_SESSION")
    pair.gateway.clock.advance(20_000)
    until(pair.results)
    pair.board.result(late, "ACCEPTED", evse=1, session_id="S7")  # no start yet
    pair.poll(pair.board)
    assert pair.board.take("STOP_SESSION")["data"] == {"session_id": "S7"}


# --- who, and what


def test_nobody_touches_anothers_reservation(pair: Pair) -> None:
    """The same id from another party is another reservation."""
    first = pair.reserve(pair.board)
    with FakeEmsp(party_id="OTH") as other:
        client = other.register(pair.gateway, "registration-token-2")
        cancel = {"response_url": f"{other.url}/results/1", "reservation_id": "R1"}
        assert pair.command("CANCEL_RESERVATION", cancel, client) == "ACCEPTED"
        until(lambda: other.pushes("POST", "results"))
        assert other.pushes("POST", "results") == [{"result": "UNKNOWN_RESERVATION"}]
        body = pair.reserve_body(token=token(party_id="OTH"))
        assert pair.command("RESERVE_NOW", body, client) == "ACCEPTED"
        pair.poll(pair.board)
        theirs = pair.board.take("RESERVE_NOW")
        assert theirs["data"]["reservation_id"] != first["data"]["reservation_id"]
        assert "session_id" not in theirs["data"]
    assert pair.held() == [("DEMO-1", "r1")]


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("RESERVE_NOW", "RESERVABLE"), ("START_SESSION", "REMOTE_START_STOP_CAPABLE")],
)
def test_what_an_evse_cannot_do_is_not_supported(
    tmp_path: Path, kind: str, missing: str
) -> None:
    site = Pair(tmp_path)
    try:
        for place in site.gateway.context.catalog.location("LOC1").evses:
            place.capabilities.remove(missing)
        for uid in ("E1", None):
            body = {k: v for k, v in site.reserve_body(evse_uid=uid).items() if v is not None}
            assert site.command(kind, body) == "NOT_SUPPORTED"
        site.poll()
        assert site.board.commands == [] == site.second.commands
    finally:
        site.close()


def test_reserved_with_the_time_unknown_is_shown_to_the_operator(pair: Pair) -> None:
    pair.reserve(pair.board)
    assert pair.gateway.station()["evses"]["1"]["time_unknown"] is False
    pair.board.power_up()
    pair.board.write("boot", fw="0.1.0", cause="power", slot="a", board="virtual", evses=[])
    pair.board.live["1"] = {"status": "RESERVED", "plugged": False, "time_unknown": True}
    pair.poll(pair.board)
    shown = pair.gateway.station()["evses"]["1"]
    assert (shown["status"], shown["time_unknown"]) == ("RESERVED", True)
