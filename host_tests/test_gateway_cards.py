"""A card's right at the gateway: OCPI 2.2.1, mod_tokens (whitelist types, real-time authorisation)
and mod_commands (the 15 minutes), against eMSPs that answer, refuse, are slow or lie."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response

from host_tests.gateway_kit import (
    TOKEN_A,
    Clock,
    FakeEmsp,
    Gateway,
    _reply,
    board_token,
    token,
)
from host_tests.test_gateway_ocpi import Site
from host_tests.uplink_peer import Board
from tools.emsp import models

TOKENS_A = [TOKEN_A, "registration-token-2", "registration-token-3"]
UID = "04A1B2C3D4E580"
DEADLINE_S = 2.0  # the gateway's in these tests
GO_ON = threading.Event()  # what is silent goes on with it
Answer = Callable[[str, Any], Response | None]


class Issuer(FakeEmsp):
    """An eMSP that authorises in real time, as the test says."""

    def __init__(self, party_id: str = "EMS") -> None:
        self.answer: Answer = unknown
        self.asked: list[tuple[str, Any]] = []
        super().__init__(party_id=party_id)
        self.senders = ["tokens"]

    def _store(self, method: str, path: str, body: Any) -> Response:
        if method == "POST" and path.startswith("tokens/"):
            self.asked.append((path, body))
            return self.answer(path, body) or Response("", status_code=500)
        return super()._store(method, path, body)


def unknown(path: str, body: Any) -> Response:
    return _reply(None, 2004, 404)


def says(allowed: str = "ALLOWED", **changes: Any) -> Answer:
    """AuthorizationInfo about the Token that is asked for; `changes` over it."""

    def answer(path: str, body: Any) -> Response:
        info = {"allowed": allowed, "token": token(path.split("/")[1].upper()), "location": body}
        merged = {k: v for k, v in (info | changes).items() if v is not None}
        return _reply(merged)

    return answer


def silent(path: str, body: Any) -> Response | None:
    GO_ON.wait(60)
    return says()(path, body)


NO_ANSWER: dict[str, Answer] = {
    "late": silent,
    "broken": lambda path, body: Response("oops", status_code=500),
    "no json": lambda path, body: Response("oops", status_code=200),
    "no envelope": lambda path, body: Response("[1]", status_code=200),
    "server error": lambda path, body: _reply(None, 3000),
    "too little information": lambda path, body: _reply(None, 2002),
    "no data": lambda path, body: _reply(None),
    "no word": lambda path, body: _reply({"token": token()}),
    "another card": says(token=token("04FFFFFFFFFF80")),
    "another type": says(token=token(type="APP_USER")),
    "another's card": says(token=token(party_id="OTH")),
}


class Place(Site):
    """A gateway, a platform that authorises in real time, and a board whose reader is used."""

    def __init__(self, folder: Path) -> None:
        settings = {"authorize_timeout_s": DEADLINE_S, "registration_tokens": TOKENS_A}
        self.gateway = Gateway(folder, Clock(), **settings)
        self.emsp = self.issuer = Issuer()
        self.client = self.emsp.register(self.gateway)
        self.board = Board()
        self.board.hello()
        self.board.status("AVAILABLE")
        self.talk()

    def push(self, **changes: Any) -> None:
        sent = token(**changes)
        path = f"tokens/NL/{sent['party_id']}/{sent['uid']}?type={sent['type']}"
        assert self.client.ask("PUT", path, sent)[1] == 1000

    def show(self, uid: str = UID, type: str = "RFID", evse: int = 1) -> dict[str, Any]:
        """The board asks until it is told; `data` of AUTHORIZE."""
        self.board.authorize = {"evse": evse, "type": type, "uid": uid}
        send = self.gateway.link(self.board)
        end = time.monotonic() + 15
        while not self.board.commands:
            assert time.monotonic() < end, "no word on the card"
            raw = send(self.board.message())
            assert raw is not None
            self.board.receive(raw)
            time.sleep(0.02)
        self.board.authorize = None
        data: dict[str, Any] = self.board.take("AUTHORIZE")["data"]
        assert (data["evse"], data["uid"]) == (evse, uid)
        return data


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    GO_ON.clear()
    made = Place(tmp_path)
    yield made
    GO_ON.set()
    made.close()


def test_an_unknown_card_is_asked_for_and_the_answer_reaches_session_and_cdr(place: Place) -> None:
    theirs = token(contract_id="NL-EMS-C77777777-X")
    place.issuer.answer = says(token=theirs, authorization_reference="REF-7")
    data = place.show("04a1b2c3d4e580")  # readers write it as they like
    assert data == {
        "evse": 1,
        "uid": "04a1b2c3d4e580",
        "allowed": "ALLOWED",
        "token": board_token(),
        "auth_method": "AUTH_REQUEST",
        "authorization_reference": "REF-7",
    }
    ((path, asked),) = place.issuer.asked
    assert path == "tokens/04a1b2c3d4e580/authorize"
    models.LocationReferences.model_validate(asked)
    assert asked == {"location_id": "LOC1", "evse_uids": ["E1"]}
    headers = next(h for h, (_, p, _) in zip(
        place.issuer.headers, place.issuer.received, strict=True) if p == path)  # fmt: skip
    assert headers["ocpi-to-party-id"] == "EMS" and headers["ocpi-from-party-id"] == "BEC"
    assert headers["x-request-id"] and headers["x-correlation-id"]
    place.board.start(
        "S1", board_token(), auth_method="AUTH_REQUEST", authorization_reference="REF-7"
    )
    place.talk()
    _, _, (session,) = place.client.ask("GET", "sessions")
    assert session["cdr_token"]["contract_id"] == "NL-EMS-C77777777-X"
    assert session["auth_method"] == "AUTH_REQUEST"
    assert session["authorization_reference"] == "REF-7"
    assert place.client.ask("GET", f"tokens/NL/EMS/{UID}")[1] == 2004, "it was not pushed"


@pytest.mark.parametrize("word", ["BLOCKED", "EXPIRED", "NO_CREDIT", "NOT_ALLOWED"])
def test_every_word_but_allowed_is_a_no(place: Place, word: str) -> None:
    place.issuer.answer = says(word)
    data = place.show()
    assert data == {"evse": 1, "uid": UID, "allowed": word}


@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize(
    ("whitelist", "asks"),
    [("ALWAYS", False), ("ALLOWED", False), ("ALLOWED_OFFLINE", True), ("NEVER", True)],
)
def test_who_decides(place: Place, whitelist: str, asks: bool, valid: bool) -> None:
    """mod_tokens, WhitelistType: `valid` has no influence on who has to be asked."""
    place.push(whitelist=whitelist, valid=valid)
    for word in ("ALLOWED", "BLOCKED") if asks else ("BLOCKED",):
        place.issuer.answer = says(word, token=token(whitelist=whitelist, valid=valid))
        place.gateway.clock.advance(60_000)
        place.issuer.asked.clear()
        data = place.show()
        assert bool(place.issuer.asked) is asks
        wanted = word if asks else ("ALLOWED" if valid else "BLOCKED")
        assert data["allowed"] == wanted
        if wanted == "ALLOWED":
            assert data["auth_method"] == ("AUTH_REQUEST" if asks else "WHITELIST")


@pytest.mark.parametrize("how", NO_ANSWER)
def test_no_answer(place: Place, how: str) -> None:
    """Never a yes; a Token that may be used offline is decided by what was pushed."""
    place.issuer.answer = NO_ANSWER[how]
    assert place.show() == {"evse": 1, "uid": UID, "allowed": "NOT_ALLOWED"}
    for whitelist, valid, wanted in (
        ("ALLOWED_OFFLINE", True, "ALLOWED"),
        ("ALLOWED_OFFLINE", False, "BLOCKED"),
        ("NEVER", True, "NOT_ALLOWED"),
    ):
        if how == "late" and wanted != "ALLOWED":
            continue
        place.gateway.clock.advance(60_000)
        place.push(whitelist=whitelist, valid=valid)
        data = place.show()
        assert data["allowed"] == wanted, (whitelist, valid)
        if wanted == "ALLOWED":
            assert data["auth_method"] == "WHITELIST" and data["token"] == board_token()
    assert place.issuer.asked


def test_an_issuer_that_says_unknown_has_answered(place: Place) -> None:
    place.push(whitelist="ALLOWED_OFFLINE")
    place.issuer.answer = unknown
    assert place.show()["allowed"] == "NOT_ALLOWED"
    place.gateway.clock.advance(60_000)
    place.issuer.answer = lambda path, body: _reply(None, 2004)  # without the HTTP status
    assert place.show()["allowed"] == "NOT_ALLOWED"


@pytest.mark.parametrize(
    ("location", "allowed"),
    [
        ({"location_id": "LOC1", "evse_uids": ["E1"]}, "ALLOWED"),
        ({"location_id": "loc1", "evse_uids": ["e1", "E2"]}, "ALLOWED"),
        ({"location_id": "LOC1"}, "ALLOWED"),
        ({"location_id": "LOC1", "evse_uids": []}, "ALLOWED"),
        (None, "ALLOWED"),
        ({"location_id": "LOC1", "evse_uids": ["E2"]}, "NOT_ALLOWED"),
        ({"location_id": "LOC2", "evse_uids": ["E1"]}, "NOT_ALLOWED"),
    ],
)
def test_the_evses_that_come_back_restrict(place: Place, location: Any, allowed: str) -> None:
    place.issuer.answer = says(location=location)
    assert place.show()["allowed"] == allowed


def test_a_question_is_asked_once_however_often_the_board_repeats_it(place: Place) -> None:
    def after_a_while(path: str, body: Any) -> Response | None:
        time.sleep(0.2)
        return says()(path, body)

    place.issuer.answer = after_a_while
    assert place.show()["allowed"] == "ALLOWED"
    assert len(place.issuer.asked) == 1
    assert place.show()["allowed"] == "ALLOWED"  # the word may have been lost on its way
    assert len(place.issuer.asked) == 1
    place.gateway.clock.advance(20_000)
    place.issuer.answer = says("BLOCKED")
    assert place.show()["allowed"] == "BLOCKED"  # shown again later
    assert len(place.issuer.asked) == 2


def test_app_users_are_never_asked_for(place: Place) -> None:
    place.issuer.answer = says()
    place.push(type="APP_USER", whitelist="NEVER")
    for kind in ("APP_USER", "AD_HOC_USER"):
        assert place.show(type=kind)["allowed"] == "NOT_ALLOWED"
    assert not place.issuer.asked


def test_several_emsps_under_one_deadline(place: Place) -> None:
    other, third = Issuer("OTH"), Issuer("THI")
    try:
        other.register(place.gateway, TOKENS_A[1])
        third.register(place.gateway, TOKENS_A[2])
        # one is silent, one has never heard of the card, one knows it
        third.answer = silent
        other.answer = says(token=token(party_id="OTH"))
        data = place.show()
        assert data["allowed"] == "ALLOWED" and data["token"]["party_id"] == "OTH"
        assert place.issuer.asked and other.asked and third.asked
        place.gateway.clock.advance(60_000)
        place.issuer.answer = says("BLOCKED")
        other.answer = unknown
        assert place.show()["allowed"] == "BLOCKED"
        place.gateway.clock.advance(60_000)
        place.push(whitelist="NEVER")  # now it is known whose it is
        other.asked.clear()
        place.issuer.answer = says()
        assert place.show()["allowed"] == "ALLOWED" and not other.asked
    finally:
        GO_ON.set()
        other.stop()
        third.stop()


def test_a_token_of_a_command_is_not_asked_for_within_15_minutes(place: Place) -> None:
    place.issuer.answer = says("BLOCKED")
    never = token(whitelist="NEVER")
    place.push(whitelist="NEVER")
    for kind, reference in (("RESERVE_NOW", "REF-R"), ("START_SESSION", "REF-S")):
        body = place.reserve_body(token=never, authorization_reference=reference)
        if kind == "START_SESSION":
            del body["expiry_date"], body["reservation_id"]
        assert place.command(kind, body) == "ACCEPTED"
        place.gateway.clock.advance(14 * 60_000)
        place.board.sleep(14 * 60_000)
        place.board.commands.clear()  # it has expired, but it was received
        data = place.show()
        assert data["allowed"] == "ALLOWED" and data["auth_method"] == "COMMAND"
        assert data["authorization_reference"] == reference and data["token"] == board_token()
        assert not place.issuer.asked
    place.gateway.clock.advance(2 * 60_000)
    assert place.show()["allowed"] == "BLOCKED" and len(place.issuer.asked) == 1


def test_a_token_that_was_invalidated_after_its_command(place: Place) -> None:
    body = place.reserve_body(token=token())
    assert place.command("RESERVE_NOW", body) == "ACCEPTED"
    place.push(valid=False, last_updated=place.date(60))
    place.board.commands.clear()
    assert place.show()["allowed"] == "BLOCKED"


def test_another_charge_point_s_command_counts_for_nothing_here(place: Place) -> None:
    place.issuer.answer = says("BLOCKED")
    there = Board("DEMO-2", "ab" * 32)
    there.hello()
    place.gateway.talk(there)
    body = place.reserve_body(evse_uid="E2")
    assert place.command("RESERVE_NOW", body) == "ACCEPTED"
    assert place.show()["allowed"] == "BLOCKED"


def test_groups_reach_the_board_under_names_of_ours(place: Place) -> None:
    """Equal for equal groups of one eMSP, whatever their case; 8 characters."""
    names = set()
    for uid, group in (("AA01", "Family 1"), ("AA02", "family 1"), ("AA03", "Family 2")):
        place.push(uid=uid, group_id=group)
        data = place.show(uid)
        names.add(data["token"]["group_id"])
        assert len(data["token"]["group_id"]) == 8
    assert len(names) == 2
    assert "family" not in json.dumps(sorted(names)).lower()
