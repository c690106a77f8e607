"""Every CommandResultType that OCPI 2.2.1 has, from each command that can come to it: an eMSP's
request through the real gateway and the real agent, in virtual time.

In brackets is what the CommandResponse said where it was not ACCEPTED: then no result follows.
Expected is mod_commands: its enumerations and its examples (a START_SESSION before the plug is
ACCEPTED, or FAILED where the charge point wants the plug first); where it leaves a choice, what
tools/gateway/README.md says. CANCELED_RESERVATION is in test_reservation_lessons.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from host_tests.town_kit import ALICE, BOB, LOCATION, MINUTE, SECOND, Board, Town, as_ocpi

Act = Callable[[Town, Board], None]


def plug(town: Town, board: Board) -> None:
    board.pins[1].car = "C"
    town.run(2 * SECOND)


def charging(town: Town, board: Board) -> None:
    plug(town, board)
    assert town.start(ALICE, wait_ms=8 * SECOND) == "ACCEPTED" and board.closed()


def faulted(town: Town, board: Board) -> None:
    board.pins[1].fail = True
    town.run(3 * SECOND)


def dead_meter(town: Town, board: Board) -> None:
    plug(town, board)
    board.real[1].dead = True


def reserved(town: Town, board: Board) -> None:
    assert town.reserve() == "ACCEPTED"


def bobs(town: Town, board: Board) -> None:
    assert town.reserve("R2", BOB) == "ACCEPTED"


def stuck(town: Town, board: Board) -> None:
    charging(town, board)
    board.pins[1].locked = lambda: True  # type: ignore[method-assign]


def ended(town: Town, board: Board) -> None:
    """Over at the board, and the gateway has not heard of it."""
    charging(town, board)
    town.gateway_up = False
    board.show(ALICE)
    town.run(10 * SECOND)
    assert not board.closed()
    town.gateway_up = True


def nothing(town: Town, board: Board) -> None:
    pass


def unplugged_lock(town: Town, board: Board) -> None:
    board.pins[1].has_lock = False
    charging(town, board)


def session_id(town: Town) -> str:
    return str(town.sessions()[-1]["id"])


PLACE = {"location_id": LOCATION, "evse_uid": "E1"}
ASK: dict[str, Callable[[Town], str]] = {
    "RESERVE_NOW": lambda town: town.reserve(),
    "CANCEL_RESERVATION": lambda town: town.cancel(),
    "START_SESSION": lambda town: town.start(ALICE, wait_ms=10 * SECOND),
    "START_SESSION anywhere": lambda town: town.start(ALICE, None, wait_ms=10 * SECOND),
    "STOP_SESSION": lambda town: town.command(
        "STOP_SESSION", wait_ms=20 * SECOND, session_id=session_id(town)
    ),
    "STOP_SESSION unknown": lambda town: town.command("STOP_SESSION", session_id="none"),
    "UNLOCK_CONNECTOR": lambda town: town.command(
        "UNLOCK_CONNECTOR", wait_ms=15 * SECOND, connector_id="1", **PLACE
    ),
}


@pytest.mark.parametrize(
    ("kind", "before", "result"),
    [
        ("RESERVE_NOW", nothing, "ACCEPTED"),
        ("RESERVE_NOW", bobs, "EVSE_OCCUPIED"),
        ("RESERVE_NOW", plug, "EVSE_OCCUPIED"),
        ("RESERVE_NOW", charging, "EVSE_OCCUPIED"),
        ("RESERVE_NOW", faulted, "EVSE_INOPERATIVE"),
        ("CANCEL_RESERVATION", reserved, "ACCEPTED"),
        ("CANCEL_RESERVATION", nothing, "UNKNOWN_RESERVATION"),
        ("START_SESSION", plug, "ACCEPTED"),
        ("START_SESSION", nothing, "ACCEPTED"),
        ("START_SESSION", reserved, "ACCEPTED"),
        ("START_SESSION", bobs, "EVSE_OCCUPIED"),
        ("START_SESSION", charging, "EVSE_OCCUPIED"),
        ("START_SESSION", faulted, "EVSE_INOPERATIVE"),
        ("START_SESSION", dead_meter, "FAILED"),
        ("START_SESSION anywhere", plug, "ACCEPTED"),
        ("START_SESSION anywhere", reserved, "ACCEPTED"),
        ("START_SESSION anywhere", bobs, "EVSE_OCCUPIED"),
        ("STOP_SESSION", charging, "ACCEPTED"),
        ("STOP_SESSION", ended, "REJECTED"),
        ("STOP_SESSION unknown", nothing, "[UNKNOWN_SESSION]"),
        ("UNLOCK_CONNECTOR", charging, "ACCEPTED"),
        ("UNLOCK_CONNECTOR", stuck, "FAILED"),
        ("UNLOCK_CONNECTOR", unplugged_lock, "NOT_SUPPORTED"),
        ("UNLOCK_CONNECTOR", nothing, "[REJECTED]"),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value).replace(" ", "_"),
)
def test_what_a_command_comes_to(tmp_path: Path, kind: str, before: Act, result: str) -> None:
    town = Town(tmp_path)
    before(town, town.boards["DEMO-1"])
    assert ASK[kind](town) == result


@pytest.mark.parametrize("kind", ["RESERVE_NOW", "CANCEL_RESERVATION", "START_SESSION",
                                  "STOP_SESSION", "UNLOCK_CONNECTOR"])  # fmt: skip
def test_timeout_and_nothing_late(tmp_path: Path, kind: str) -> None:
    """The board hears it and its answer gets lost until the time is over: TIMEOUT, once, and what
    begins a right is undone. What ends one stays ended."""
    town = Town(tmp_path)
    board = town.boards["DEMO-1"]
    if kind == "CANCEL_RESERVATION":
        reserved(town, board)
    elif kind in ("STOP_SESSION", "UNLOCK_CONNECTOR"):
        charging(town, board)
    elif kind == "START_SESSION":
        plug(town, board)
    take = board.take

    def lose(message: bytes) -> None:
        """The way up is broken."""

    board.take = lose  # type: ignore[method-assign]
    board.config["live_s"] = 1
    asked = town.ms
    ASK[kind](town)
    url = town.url
    town.run(asked + 35 * SECOND - town.ms)
    assert town.results(url) == ["TIMEOUT"]
    board.take = take  # type: ignore[method-assign]
    town.run(3 * MINUTE)
    assert town.results(url) == ["TIMEOUT"]
    assert board.held() is None and board.evse().session is None and not board.closed()
    if kind == "START_SESSION":
        assert [s["status"] for s in town.sessions()] == ["COMPLETED"]


def test_where_the_plug_comes_first(tmp_path: Path) -> None:
    town = Town(tmp_path, plug_first=True)
    board = town.boards["DEMO-1"]
    assert town.start(ALICE) == "FAILED"
    plug(town, board)
    assert not board.closed()
    assert town.start(ALICE, wait_ms=8 * SECOND) == "ACCEPTED" and board.closed()


def test_a_start_that_nobody_plugs_in_for_comes_to_nothing(tmp_path: Path) -> None:
    """The example of mod_commands: ACCEPTED, no plug before the time-out, no Session."""
    town = Town(tmp_path)
    board = town.boards["DEMO-1"]
    assert town.start(ALICE) == "ACCEPTED"
    town.run(3 * MINUTE)
    plug(town, board)
    assert not board.closed() and town.sessions() == []


def test_what_an_evse_does_not_support(tmp_path: Path) -> None:
    """Without its capability: NOT_SUPPORTED at once. With START_SESSION_CONNECTOR_REQUIRED the
    connector has to be named."""
    town = Town(tmp_path)
    config: Any = town.config
    evse = config["locations"][0]["evses"][0]
    evse["capabilities"] = ["RFID_READER"]
    town.stop_gateway()
    town.start_gateway()
    assert town.reserve() == "[NOT_SUPPORTED]" and town.start(ALICE) == "[NOT_SUPPORTED]"
    evse["capabilities"] = [
        "REMOTE_START_STOP_CAPABLE", "START_SESSION_CONNECTOR_REQUIRED",
    ]  # fmt: skip
    town.stop_gateway()
    town.start_gateway()
    town.gateway_up = True
    town.run(2 * MINUTE)
    assert town.start(ALICE) == "[REJECTED]"
    assert town.start(ALICE, connector_id="1") == "ACCEPTED"


def test_unlock_is_for_whoever_was_there_last_also_by_a_reservation_that_moved(
    tmp_path: Path,
) -> None:
    """Alice's Session is older than Carol's, but it is hers that runs at E1: UNLOCK_CONNECTOR,
    which would end it, is not for Carol's eMSP, and for Alice's also when it is over."""
    town = Town(tmp_path, {"DEMO-1": 2})
    board = town.boards["DEMO-1"]
    town.register("OTH")
    carol = ALICE | {"party_id": "OTH", "uid": "04CC0001"}
    unlock = {"connector_id": "1", "wait_ms": 15 * SECOND, **PLACE}
    assert town.reserve(uid="E2") == "ACCEPTED"
    plug(town, board)
    start: dict[str, Any] = {"token": as_ocpi(carol), "wait_ms": 8 * SECOND, **PLACE}
    assert town.command("START_SESSION", "OTH", **start) == "ACCEPTED"
    assert town.command("UNLOCK_CONNECTOR", "OTH", **unlock) == "ACCEPTED"
    board.pins[1].car = "A"
    town.run(5 * SECOND)
    assert town.reserve() == "ACCEPTED", "replaced: at E1 from now on"
    assert town.command("UNLOCK_CONNECTOR", "OTH", **unlock) == "[REJECTED]"
    charging(town, board)
    assert [session["evse_uid"] for session in town.sessions()] == ["E1", "E1"]
    assert town.command("UNLOCK_CONNECTOR", "OTH", **unlock) == "[REJECTED]" and board.closed()
    board.show(ALICE)
    town.run(10 * SECOND)
    assert town.command("UNLOCK_CONNECTOR", "OTH", **unlock) == "[REJECTED]"
    assert town.command("UNLOCK_CONNECTOR", **unlock) == "ACCEPTED"
