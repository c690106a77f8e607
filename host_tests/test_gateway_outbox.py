"""Push: nothing lost, nothing twice, nothing old after new, over failures and restarts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response

from host_tests.gateway_kit import Client, Clock, FakeEmsp, Gateway, board_token, token, until
from host_tests.uplink_peer import Board
from tools.gateway.store import Outbox

SESSION = "sessions/BE/BEC/S1"


class Desk:
    """A gateway, a registered scripted eMSP, a board that is charging."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.clock = Clock()
        self.gateway = Gateway(folder, self.clock, **changes)
        self.emsp = FakeEmsp()
        self.client: Client = self.emsp.register(self.gateway)
        self.board = Board()
        self.board.hello()
        self.changes = changes

    def talk(self) -> None:
        self.gateway.talk(self.board)

    def settle(self) -> None:
        """Until nothing is pending; back-off runs on the test's clock."""

        def idle() -> bool:
            self.clock.advance(50)
            return self.gateway.idle()

        until(idle)

    def restart(self) -> None:
        self.gateway.stop()
        self.gateway = Gateway(self.folder, self.clock, port=self.gateway.port, **self.changes)

    def close(self) -> None:
        self.gateway.stop()
        self.emsp.stop()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def starts(session: dict[str, Any]) -> list[str]:
    return [period["start_date_time"] for period in session["charging_periods"]]


def test_put_then_patch_then_cdr(desk: Desk) -> None:
    board, emsp = desk.board, desk.emsp
    board.start("S1", board_token())
    desk.talk()
    desk.settle()
    assert len(emsp.pushes("PUT", SESSION)) == 1
    board.period("S1", 100, 60_000)
    desk.talk()
    desk.settle()
    change = emsp.pushes("PATCH", SESSION)[0]
    assert set(change) == {"kwh", "charging_periods", "last_updated"}
    board.period("S1", 200, 60_000)
    board.stop("S1")
    desk.talk()
    desk.settle()
    held = emsp.objects[SESSION]
    assert (held["kwh"], held["status"], len(held["charging_periods"])) == (0.3, "COMPLETED", 2)
    (cdr,) = emsp.pushes("POST", "cdrs")
    assert cdr["charging_periods"] == held["charging_periods"] and cdr["total_energy"] == 0.3
    index = next(i for i, (m, p, _) in enumerate(emsp.received) if (m, p) == ("PATCH", SESSION))
    headers = emsp.headers[index]
    assert headers["ocpi-to-party-id"] == "EMS" and headers["ocpi-from-party-id"] == "BEC"
    assert headers["x-request-id"] and headers["x-correlation-id"]


def test_news_while_the_party_is_away_coalesces(desk: Desk) -> None:
    """Hours of offline become one request with the newest state."""
    board, emsp = desk.board, desk.emsp
    board.start("S1", board_token())
    desk.talk()
    desk.settle()
    emsp.script = [lambda method, path: Response("away", 503)] * 10_000
    for _ in range(20):
        board.period("S1", 10, 60_000)
        desk.talk()
    before = len(emsp.received)
    emsp.script.clear()
    desk.settle()
    after = [(m, p) for m, p, _ in emsp.received[before:] if p == SESSION]
    assert len(after) <= 3 and emsp.objects[SESSION]["kwh"] == 0.2
    assert len(emsp.objects[SESSION]["charging_periods"]) == 20


def test_a_patch_that_was_applied_but_not_answered_adds_nothing_twice(desk: Desk) -> None:
    """2.2.1: a PATCH of charging_periods adds. So after a failure the gateway looks first."""
    board, emsp = desk.board, desk.emsp
    board.start("S1", board_token())
    desk.talk()
    desk.settle()
    emsp.fail("PATCH", SESSION, after=True)
    board.period("S1", 100, 60_000)
    desk.talk()
    desk.settle()
    assert [m for m, p, _ in emsp.received if p == SESSION] == ["PUT", "PATCH", "GET"]
    board.period("S1", 100, 60_000)
    desk.talk()
    desk.settle()
    held = starts(emsp.objects[SESSION])
    assert len(held) == 2 and len(set(held)) == 2


def test_a_patch_for_an_object_that_is_gone_becomes_a_put(desk: Desk) -> None:
    board, emsp = desk.board, desk.emsp
    board.start("S1", board_token())
    desk.talk()
    desk.settle()
    emsp.objects.clear()
    board.period("S1", 100, 60_000)
    desk.talk()
    desk.settle()
    assert [m for m, p, _ in emsp.received if p == SESSION] == ["PUT", "PATCH", "GET", "PUT"]
    assert emsp.objects[SESSION]["kwh"] == 0.1


def test_an_ocpi_error_is_a_failure_too(desk: Desk) -> None:
    """HTTP 200 with status 2001 is no success."""
    body = json.dumps({"status_code": 2001, "timestamp": "2026-01-01T00:00:00Z"})
    desk.emsp.script = [lambda m, p: Response(body) if m == "PUT" else None]
    desk.board.start("S1", board_token())
    desk.talk()
    desk.settle()
    assert desk.emsp.objects[SESSION]["status"] == "ACTIVE"
    assert len(desk.emsp.pushes("PUT", SESSION)) == 2


def test_changed_periods_replace_the_session(desk: Desk) -> None:
    """A clock step moves the start of periods already told: PUT, not PATCH."""
    board, emsp = desk.board, desk.emsp
    board.start("S1", board_token())
    board.period("S1", 100, 60_000)
    desk.talk()
    desk.settle()
    before = starts(emsp.objects[SESSION])
    board.unix_ms += 3_600_000
    board.anchor(step=True)
    desk.talk()
    desk.settle()
    assert [m for m, p, _ in emsp.received if p == SESSION][-1] == "PUT"
    after = starts(emsp.objects[SESSION])
    assert len(before) == len(after) == 1 and after[0] > before[0]


def test_a_cdr_is_repeated_byte_for_byte(desk: Desk) -> None:
    board, emsp = desk.board, desk.emsp
    board.start("S1", board_token())
    board.period("S1", 12_345, 60_000)
    board.stop("S1")
    for _ in range(4):
        emsp.fail("POST", "cdrs")
    desk.talk()
    desk.settle()
    bodies = [
        body for (m, p, _), body in zip(emsp.received, emsp.bodies, strict=True) if m == "POST"
    ]
    assert len(bodies) == 5 and len(set(bodies)) == 1
    assert b'"total_energy":12.345' in bodies[0]


def test_a_restart_in_the_middle_loses_nothing(desk: Desk) -> None:
    """The gateway dies after a request went out and before its end was known."""
    board, emsp = desk.board, desk.emsp
    board.start("S1", board_token())
    desk.talk()
    desk.settle()
    emsp.script = [lambda method, path: Response("away", 503)] * 10_000
    board.period("S1", 100, 60_000)
    board.stop("S1")
    desk.talk()
    until(lambda: any(m == "PATCH" and p == SESSION for m, p, _ in emsp.received))
    pending = {row["kind"] for row in desk.gateway.admin("outbox")}
    assert {"session", "cdr"} <= pending
    desk.restart()
    assert {row["kind"] for row in desk.gateway.admin("outbox")} >= {"session", "cdr"}
    emsp.script.clear()
    desk.settle()
    assert emsp.objects[SESSION]["status"] == "COMPLETED"
    assert len(starts(emsp.objects[SESSION])) == 1
    posted = [
        body for (m, p, _), body in zip(emsp.received, emsp.bodies, strict=True) if p == "cdrs"
    ]
    assert posted and len(set(posted)) == 1
    received = len(emsp.received)
    desk.restart()
    desk.settle()
    assert len(emsp.received) == received  # nothing is sent again


def test_evse_status_is_patched_with_last_updated(desk: Desk) -> None:
    board, emsp = desk.board, desk.emsp
    board.status("AVAILABLE")
    desk.talk()
    desk.settle()
    # the fake knows no locations until one is PUT; a refused PATCH is followed by GET and PUT
    emsp.fail("PATCH", "locations/BE/BEC/LOC1/E1", 404)
    board.status("CHARGING", plugged=True)
    desk.talk()
    desk.settle()
    changes = emsp.pushes("PATCH", "locations/BE/BEC/LOC1/E1")
    assert [set(change) for change in changes] == [{"status", "last_updated"}] * 2
    assert [change["status"] for change in changes] == ["AVAILABLE", "CHARGING"]
    (whole,) = emsp.pushes("PUT", "locations/BE/BEC/LOC1")
    assert whole["evses"][0]["status"] == "CHARGING" and "board" not in whole["evses"][0]
    assert whole["last_updated"] >= whole["evses"][0]["last_updated"]
    _, _, shown = desk.client.ask("GET", "locations/LOC1")
    assert shown["last_updated"] >= changes[-1]["last_updated"]


def test_a_slow_session_does_not_delay_a_result(desk: Desk) -> None:
    """Two lanes: state waits for its back-off, the CommandResult goes."""
    board, emsp = desk.board, desk.emsp
    board.status("AVAILABLE")
    desk.talk()
    desk.settle()
    body = {
        "response_url": f"{emsp.url}/results/1",
        "token": token(),
        "location_id": "LOC1",
        "evse_uid": "E1",
    }
    _, _, answer = desk.client.ask("POST", "commands/START_SESSION", body)
    assert answer["result"] == "ACCEPTED"
    emsp.script = [
        lambda m, p: Response("away", 503) if not p.startswith("results") else None
    ] * 10_000
    desk.talk()
    command = board.take("START_SESSION")
    board.start("S1", board_token())
    board.result(command, "ACCEPTED", evse=1, session_id="S1")
    desk.talk()
    until(lambda: emsp.pushes("POST", "results/1"))
    assert emsp.pushes("POST", "results/1") == [{"result": "ACCEPTED"}]
    emsp.script.clear()
    desk.settle()


def test_a_result_is_retried_within_its_timeout_only(desk: Desk) -> None:
    board, emsp = desk.board, desk.emsp
    board.status("AVAILABLE")
    desk.talk()
    desk.settle()
    body = {
        "response_url": f"{emsp.url}/results/1",
        "token": token(),
        "location_id": "LOC1",
        "evse_uid": "E1",
    }
    desk.client.ask("POST", "commands/START_SESSION", body)
    emsp.script = [lambda m, p: Response("", 500) if p.startswith("results") else None] * 10_000
    desk.talk()
    board.result(board.take("START_SESSION"), "REJECTED")
    desk.talk()

    def tried() -> bool:
        desk.clock.advance(50)
        return len(emsp.pushes("POST", "results/1")) >= 3

    until(tried)
    desk.clock.advance(20_000)
    desk.settle()
    with desk.gateway.context.store() as db:
        assert db.query(Outbox).filter(Outbox.kind == "command_result").count() == 0


def test_sessions_of_others_are_not_pushed(desk: Desk) -> None:
    other = FakeEmsp(party_id="OTH")
    try:
        other.register(desk.gateway, "registration-token-2")
        desk.board.start("S1", board_token())
        desk.board.stop("S1")
        desk.board.status("AVAILABLE")
        desk.talk()
        desk.settle()
        assert {path.split("/")[0] for _, path, _ in other.received} == {"locations"}
        assert desk.emsp.objects[SESSION]["status"] == "COMPLETED"
    finally:
        other.stop()
