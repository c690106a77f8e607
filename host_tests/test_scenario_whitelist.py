"""The whitelist on the virtual board: two thousand cards from the gateway's table to the board's
list, and what each kind of card may do with the gateway and without it.

The real firmware in its VM, mosquitto, gateway, eMSP. HEAP is a hard limit; with the list on, the
agent needs 4 KiB more than without, however long the list is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host_tests.gateway_kit import Client
from host_tests.scenario_kit import Fields, Scene
from tools.gateway import ocpi, whitelist
from tools.gateway.store import open_store
from tools.stage import EVSE, LOCATION, until

pytestmark = pytest.mark.timeout(300)

HEAP = "112k"
CARDS = 2000
GROUP = "NL-FLEET-7"


class Listed(Scene):
    """A board with a whitelist, and the eMSP's own hand on the tokens module."""

    def list(self) -> Fields:
        """What the board has told of its list, beside what there should be."""
        shown: Fields = self.station()["whitelist"]
        return shown

    def synced(self, timeout_s: float = 60) -> Fields:
        def found() -> Fields | None:
            shown = self.list()
            same = all(shown.get(k) == v for k, v in shown["wanted"].items())
            return shown if same and shown["version"] else None

        return until("the list at the board", found, timeout_s)

    def parts(self, since: int) -> list[Fields]:
        """SYNC_TOKENS in the gateway's down messages, each once."""
        found: dict[str, Fields] = {}
        for raw in self.downs()[since:]:
            for command in json.loads(raw.split(b"\n")[1]).get("commands", []):
                if command["type"] == "SYNC_TOKENS":
                    found[json.dumps(command["data"], sort_keys=True)] = command["data"]
        return list(found.values())

    def had(self, cards: list[Fields]) -> None:
        """Tokens that were pushed long ago: two thousand requests would be the test's own time."""
        self.gateway.stop()
        store = open_store(f"sqlite:///{self.folder}/gateway.sqlite3")
        with store.begin() as db:
            for each in cards:
                whitelist.note(db, ocpi.Token.model_validate(each), time.time_ns() // 1_000_000)
        store.kw["bind"].dispose()
        self.start_gateway()
        self.fresh()  # a board that was told before has no reason to say all of it soon

    def put(self, cards: list[Fields]) -> None:
        """PUT Tokens as the registered platform."""
        state = json.loads((self.folder / "emsp" / "state.json").read_text())
        emsp = Client(f"http://127.0.0.1:{self.gateway.ready['port']}", state["token_c"])
        headers = {
            "OCPI-from-country-code": "NL", "OCPI-from-party-id": "EMS",
            "OCPI-to-country-code": "NL", "OCPI-to-party-id": "WLK",
        }  # fmt: skip
        for each in cards:
            path = f"tokens/NL/EMS/{each['uid']}"
            assert emsp.ask("PUT", path, each, headers=headers)[1] == 1000

    def gone(self) -> None:
        """No gateway and no broker, and a board that knows it."""
        lost = self.board.console().count("trouble in link")
        self.broker.kill()
        self.gateway.kill()
        self.offline(lost + 1)

    def back(self) -> None:
        self.broker.start()
        self.start_gateway()
        self.fresh()  # its link would be tried again after ever longer pauses

    def uid(self, uid: str) -> None:
        """Hold a card to the reader, long after the one before."""
        time.sleep(2.5)
        self.board.token(uid)

    def starts_and_stops(self, since: int, uid: str, stopper: str | None = None) -> None:
        """A session by this card, which this or another one ends."""
        self.uid(uid)
        self.board.wait(contactor=1, timeout_s=20)
        self.uid(stopper or uid)
        self.board.wait(contactor=0, lock=0, timeout_s=20)


def card(number: int, **changes: Any) -> Fields:
    """A Token; uids of 4, 7 and 10 bytes in either case."""
    size = (4, 7, 10)[number % 3]
    uid = f"{0x20000000 + number:08X}".ljust(2 * size, "A")
    return {
        "country_code": "NL", "party_id": "EMS", "type": "RFID",
        "uid": uid if number % 2 else uid.lower(), "contract_id": f"NL-EMS-C{number:08}-X",
        "issuer": "Demo eMSP", "valid": True, "whitelist": "ALLOWED",
        "last_updated": "2026-01-01T00:00:00Z",
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def listed(
    micropython: Path, mosquitto: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Listed]:
    folder = tmp_path_factory.mktemp("whitelist")
    cpo = {"whitelist_every_s": 1}
    with Listed(mosquitto, folder, cpo, heap=HEAP, offline_cards="whitelist") as scene:
        try:
            scene.begin()
            yield scene
        finally:
            scene.evidence({})


def test_two_thousand_cards_with_and_without_the_gateway(listed: Listed) -> None:
    """All of them in parts, then only what changes; offline a listed card starts, one that may
    only offline does, a blocked one and a stranger's do not, a group's card stops."""
    cards = [card(n) for n in range(CARDS)]
    cards[11]["whitelist"] = "ALLOWED_OFFLINE"
    cards[12]["whitelist"] = "NEVER"
    cards[13]["valid"] = False
    cards[14]["group_id"] = cards[15]["group_id"] = GROUP
    listed.had(cards)
    full = listed.synced()
    # the drivers' three cards are on it, the NEVER and the blocked one are not
    assert full["rows"] == CARDS - 2 + 3

    mark = len(listed.downs())
    cards[20]["valid"] = False
    cards[21]["whitelist"] = "ALLOWED_OFFLINE"
    new = card(CARDS + 1)
    listed.put([cards[20], cards[21], new])
    until("news", lambda: listed.list()["wanted"]["version"] != full["version"], 10)
    after = listed.synced()
    assert after["rows"] == full["rows"]  # one less, one more
    parts = listed.parts(mark)
    assert parts and {part["from"] for part in parts} == {full["version"]}, "not all again"
    assert len(parts) == 1

    listed.power_cycle()  # the list is a file
    listed.online()
    since, pins = listed.mark(), listed.board.watch.mark()
    listed.gone()
    listed.plug("C")
    listed.starts_and_stops(since, cards[10]["uid"].swapcase())
    listed.starts_and_stops(since, cards[11]["uid"])
    listed.starts_and_stops(since, cards[14]["uid"], stopper=cards[15]["uid"])
    listed.starts_and_stops(since, new["uid"])
    assert len(listed.closings(pins)) == 4
    for uid in (cards[12]["uid"], cards[13]["uid"], cards[20]["uid"], "DEADBEEF"):
        listed.uid(uid)
    time.sleep(1)
    assert len(listed.closings(pins)) == 4
    listed.plug("A")
    listed.back()
    tokens = [r["token"]["uid"] for r in listed.facts(since, t="start")]
    assert tokens == [c["uid"].upper() for c in (cards[10], cards[11], cards[14], new)]
    assert {r["auth_method"] for r in listed.facts(since, t="start")} == {"WHITELIST"}
    stoppers = [r["token"]["uid"] for r in listed.facts(since, t="stop")]
    assert stoppers == [c["uid"].upper() for c in (cards[10], cards[11], cards[15], new)]
    assert [r["why"] for r in listed.facts(since, t="refused", what="card")] == ["offline"]
    listed.whole()


def test_who_is_asked_for_waits_visibly_and_not_for_ever(listed: Listed) -> None:
    """A card that must be asked for: the lamp says so while its eMSP thinks; the answer starts it;
    BLOCKED does not; an eMSP that thinks too long is a no."""
    listed.fresh()
    for driver in ("alice", "bob", "carol"):
        listed.emsp_post(f"tokens/{driver}", {"whitelist": "NEVER"})
    listed.synced()
    since, pins = listed.mark(), listed.board.watch.mark()
    listed.plug("C")
    listed.emsp_post("authorize/bob", {"delay_s": 3})
    lamp = listed.board.watch.mark()
    listed.show("bob")
    listed.board.wait(contactor=1, lock=1, timeout_s=20)
    assert blinks(listed, lamp) >= 6, "four times a second, for three seconds"
    start = listed.record(since, t="start")
    assert start["auth_method"] == "AUTH_REQUEST"
    answer = listed.emsp()["authorized"][-1]["answer"]
    assert start["authorization_reference"] == answer["authorization_reference"]
    listed.show("bob")
    listed.record(since, t="stop")
    cdr = listed.cdr(start["session_id"])
    assert cdr["auth_method"] == "AUTH_REQUEST"
    listed.board.wait(lock=0, timeout_s=20)

    listed.emsp_post("authorize/carol", {"info": {"allowed": "BLOCKED"}})
    listed.show("carol")
    assert listed.record(since, t="refused", what="card")["why"] == "unauthorised"

    listed.emsp_post("authorize/alice", {"delay_s": 30})  # the gateway gives it eight seconds
    lamp = listed.board.watch.mark()
    listed.show("alice")
    until("it waits", lambda: blinks(listed, lamp) > 4)
    until("its deadline", lambda: "authorize" not in listed.ups()[-1][0], 20)
    listed.online()
    listed.fresh()
    assert len(listed.closings(pins)) == 1, "the one that was allowed"
    listed.board.wait(lock=0, lock_feedback=0, timeout_s=20)
    listed.plug("A")
    listed.whole()


def blinks(scene: Scene, since: int) -> int:
    """How often the lamp lit up."""
    events = scene.board.watch.events[since:]
    return len([e for e in events if e["ev"] == "led" and e["value"] not in (0, "0", "000")])


def test_a_remote_start_needs_no_list(listed: Listed) -> None:
    """The token of a command is authorised by it, also where its card is on no list."""
    listed.emsp_post("tokens/carol", {"valid": False})
    listed.synced()
    listed.plug("C")
    since = listed.mark()
    place = {"location_id": LOCATION, "evse_uid": EVSE}
    assert listed.obey("START_SESSION", driver="carol", **place) == "ACCEPTED"
    start = listed.record(since, t="start")
    assert start["auth_method"] == "COMMAND"
    assert listed.obey("STOP_SESSION", session_id=start["session_id"]) == "ACCEPTED"
    listed.record(since, t="stop")
    listed.board.wait(lock=0, lock_feedback=0, timeout_s=20)
    listed.plug("A")
