"""The rows of docs/threats.md, one test each, of the same name.

Most are played on `site_kit.Site`: the firmware and the gateway's southbound side, with all that
is said between them in `wire`. Where a row is tested where its subject is, ELSEWHERE says so.
"""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from portable.bench import ANNA, BERT, KEY, STATION
from wattlock import commands, mac, tokens

from host_tests.gateway_kit import Bare, FakeEmsp, Gateway, token, until
from host_tests.site_kit import SECRETS, Site
from host_tests.test_gateway_ocpi import Site as Cpo
from host_tests.test_gateway_outbox import Desk
from host_tests.uplink_peer import Board
from tools import paths
from tools.gateway.store import Alarm, Evse, Record, Station

MINUTE = 60_000
ROWS = re.findall(r"^\| `(\w+)` \|", (paths.ROOT / "docs" / "threats.md").read_text(), re.M)
ELSEWHERE = {
    "lan_sends_large_ones": "portable/test_commands.py::test_too_deep portable/test_commands.py::"
    "test_too_long test_hal_mqtt.py::test_what_is_announced_is_no_reason_to_make_room "
    "test_hal_http.py::test_a_body_that_is_too_long_is_shown_as_empty_for_the_caller_to_count",
    "lan_wants_another_station": "test_gateway_acl.py::test_mosquitto_lets_a_station_speak_for_"
    "itself_only",
    "emsp_uses_others_tokens": "test_gateway_ocpi.py::test_a_token_of_another_is_rejected",
    "emsp_reserves_everything": "test_gateway_reservations.py::test_the_operator_cancels",
    "backup_has_the_keys": "test_remote.py::test_the_old_key_is_worth_nothing_afterwards",
    "backup_is_restored": "test_gateway_southbound.py::test_a_restored_database_is_heard_at_once",
}


def test_every_row_has_its_test() -> None:
    assert len(ROWS) == len(set(ROWS)) > 20
    here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(ROWS) == (here - {"every_row_has_its_test"}) | set(ELSEWHERE)
    for target in " ".join(ELSEWHERE.values()).split():
        file, _, name = target.partition("::")
        assert f"def {name}(" in (paths.ROOT / "host_tests" / file).read_text(), target


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path, monkeypatch)
    site.wire = {"up": [], "down": []}  # type: ignore[attr-defined]
    handle = site.bare.south.handle

    def tapped(station_id: str, raw: bytes, link: str) -> bytes | None:
        reply = handle(station_id, raw, link)
        site.wire["up"].append(raw)  # type: ignore[attr-defined]
        if reply is not None:
            site.wire["down"].append(reply)  # type: ignore[attr-defined]
        return reply

    monkeypatch.setattr(site.bare.south, "handle", tapped)
    site.boot()
    site.run(3000)
    yield site


def wire(site: Any) -> dict[str, list[bytes]]:
    return site.wire


def hear(site: Site, raw: bytes, retained: bool = False) -> None:
    """Somebody puts this into the board's ear."""
    site.board.link.down.append((raw, retained))
    site.run(500)


def untouched(site: Site) -> None:
    """Nothing was reserved or started, nothing moved."""
    site.run(2000)
    for t in ("reserve", "start"):
        assert site.told(t) == []
    assert site.pins[1].log.count(("contactor", True)) == 0
    assert site.app.station.evses[1].reservation is None


def start(site: Site, **changes: Any) -> bytes:
    """A START_SESSION that is right in everything; the text under the MAC."""
    order = {"id": "e" * 32, "type": "START_SESSION", "exp": site.unix_ms() + 60_000,
             "data": {"evse": 1, "token": BERT}}  # fmt: skip
    head = {"v": 1, "kid": 1, "sid": site.app.inbox.sid, "n": site.app.inbox.n + 10**6,
            "unix_ms": site.unix_ms(), "commands": [order]}  # fmt: skip
    return json.dumps(head | changes).encode()


def sealed(text: bytes, key: bytes = KEY, purpose: str = "down", station: str = STATION) -> bytes:
    return mac.purpose(key, purpose, station)(text).hex().encode() + b"\n" + text


# --- the broker's operator


def test_broker_reads(site: Site) -> None:
    """What is on the wire has no key in it, also while one is replaced."""
    site.command("ROTATE_KEY")
    site.run(10_000)
    kept = site.read("secrets")
    assert kept["kid"] == 2
    said = b"".join(wire(site)["up"] + wire(site)["down"])
    for secret in (KEY.hex(), kept["key"], kept["chain"], SECRETS["wifi"]["password"]):
        assert secret.encode() not in said and bytes(secret, "ascii").upper() not in said


@pytest.mark.parametrize(
    "forge",
    [
        lambda text: b"0" * 64 + b"\n" + text,
        lambda text: sealed(text, bytes(32)),
        lambda text: sealed(text, KEY, "up"),
        lambda text: sealed(text, KEY, "chain"),
        lambda text: sealed(text, KEY, "down", "DEMO-2"),
    ],
)
def test_broker_invents(site: Site, forge: Callable[[bytes], bytes]) -> None:
    site.pins[1].car = "C"
    hear(site, forge(start(site)))
    untouched(site)
    assert [r["why"] for r in site.told("refused", what="message")] == [commands.FORGED]
    # and upwards
    stored = len(site.bare.rows(Record))
    raw = wire(site)["up"][-1]
    record = b'{"t":"stop","boot":1,"up_ms":1}'
    assert site.bare.south.handle(STATION, raw + b"\n" + record, "mqtt") is None
    assert site.bare.south.handle(STATION, forge(raw[65:]), "mqtt") is None
    assert len(site.bare.rows(Record)) == stored
    # the same words with the right key would have been obeyed
    hear(site, sealed(start(site)))
    site.run(3000)
    assert site.told("start")


def test_broker_repeats(site: Site) -> None:
    data = {"evse": 1, "reservation_id": "R1", "token": ANNA, "expiry_ms": site.unix_ms() + 9**7}
    site.command("RESERVE_NOW", data)
    site.run(2000)
    site.command("CANCEL_RESERVATION", {"reservation_id": "R1"})
    site.run(2000)
    assert len(site.told("reserve")) == len(site.told("release")) == 1
    stored, status = len(site.bare.rows(Record)), site.bare.rows(Evse)[0].status
    for raw in wire(site)["down"] + wire(site)["up"]:
        site.board.link.down.append((raw, False))
    for raw in wire(site)["up"] + wire(site)["down"]:
        assert site.bare.south.handle(STATION, raw, "mqtt") is None
    site.run(5000)
    assert len(site.told("reserve")) == 1 and site.app.station.evses[1].reservation is None
    assert len(site.told("result")) == 2
    assert site.bare.rows(Evse)[0].status == status
    assert len([r for r in site.bare.rows(Record) if b'"refused"' not in r.body]) == stored
    site.cut(1000)
    site.run(3000)
    for raw in wire(site)["down"][:-3]:  # of the boot before
        site.board.link.down.append((raw, False))
    site.run(2000)
    assert len(site.told("reserve")) == 1


def test_broker_holds_back(site: Site) -> None:
    """A start that comes five minutes late, when its minute is over; and again after an hour,
    when newer words have come."""
    site.pins[1].car = "C"
    late = sealed(start(site))
    site.run(5 * MINUTE, 1000)
    hear(site, late)
    untouched(site)
    assert {r["why"] for r in site.told("refused", what="command")} == {commands.EXPIRED}
    site.run(61 * MINUTE, 1000)
    hear(site, late)
    untouched(site)
    assert commands.REPEATED in {r["why"] for r in site.told("refused", what="message")}


def test_broker_retains(site: Site) -> None:
    site.pins[1].car = "C"
    hear(site, sealed(start(site)), retained=True)
    untouched(site)
    assert [r["why"] for r in site.told("refused", what="message")] == [commands.RETAINED]


def test_broker_drops(site: Site) -> None:
    """A reserved card charges without a link; everything is told afterwards."""
    data = {"evse": 1, "reservation_id": "R1", "token": ANNA, "expiry_ms": site.unix_ms() + 9**8}
    site.command("RESERVE_NOW", data)
    site.run(2000)
    site.deaf = True
    site.pins[1].car = "C"
    site.app.card(ANNA["uid"])
    site.run(10 * MINUTE, 1000)
    assert site.pins[1].contactor_out
    site.app.card(ANNA["uid"])
    site.run(MINUTE)
    site.deaf = False
    site.run(5 * MINUTE)
    assert len(site.told("start")) == len(site.told("stop")) == 1
    assert site.told("stop")[0]["total_wh"] > 1000
    assert site.app.journal.acked == site.app.journal.seq


# --- the local network


def test_lan_invents(site: Site) -> None:
    """Any byte of a true message changed."""
    true = sealed(start(site))
    for at in (0, 63, 64, 65, 80, len(true) - 1):
        hear(site, true[:at] + bytes([true[at] ^ 1]) + true[at + 1 :])
    untouched(site)


def test_lan_floods(site: Site) -> None:
    """10,000 messages of rubbish in an hour: at most four records for each cause."""
    before = site.app.journal.seq
    for number in range(10_000):
        rubbish = (b"x" * 80, b"0" * 64 + b"\n{}", sealed(b"{"), bytes(5000))[number % 4]
        site.board.link.down.append((rubbish, False))
        if number % 100 == 0:
            site.run(36_000, 1000)
    site.run(MINUTE)
    told = site.told("refused")
    assert sum(r["count"] for r in told) > 7000
    causes = {(r["what"], r["why"]) for r in told}
    assert len(told) <= 5 * len(causes)  # four in an hour, and one in what is begun of the next
    assert site.app.journal.seq - before <= 5 * len(causes) + 5


def test_lan_lies_about_time(site: Site) -> None:
    now = site.app.now()
    day = 86_400_000
    lie = {"unix_ms": site.unix_ms() + day, "commands": []}
    hear(site, sealed(start(site, **lie), bytes(32)))  # not the gateway's
    hear(site, sealed(start(site, **lie)))  # the gateway's, and no answer
    hear(site, sealed(start(site, **lie, re=site.app.uplink._last_up - 1)))  # to nothing of now
    assert abs(site.app.now() - now - 1500) < 100
    assert len(site.told("time")) == 1


# --- a thief with the board


def test_thief_is_the_station(tmp_path: Path) -> None:
    """He speaks as this one, and as no other; without its entry he is a stranger."""
    bare = Bare(tmp_path)
    thief = Board()
    thief.hello()
    assert bare.up(thief) is not None
    other = Board(station_id="DEMO-2", key=thief.key.hex())
    other.hello()
    assert bare.south.handle("DEMO-2", other.message(), "mqtt") is None
    assert bare.refused("DEMO-2") == {"mac": 1}
    del bare.config.stations["DEMO-1"]
    assert bare.south.handle("DEMO-1", thief.message(), "mqtt") is None


def forked(bare: Bare, board: Board) -> None:
    head = bare.up(board)
    assert head is None or ("ack" not in head and "commands" not in head)
    assert "fork" in [alarm.kind for alarm in bare.rows(Alarm)]
    assert bare.rows(Station)[0].quarantine is not None


def told_all(folder: Path) -> tuple[Bare, Board]:
    bare, board = Bare(folder), Board()
    board.hello()
    for number in range(4):
        board.write("event", what="supervisor", task=str(number))
    bare.all(board)
    return bare, board


def test_thief_clones(tmp_path: Path) -> None:
    bare, board = told_all(tmp_path)
    clone = copy.deepcopy(board)
    clone.power_up()
    clone.write("event", what="supervisor", task="the clone's")
    board.write("event", what="supervisor", task="the board's")
    bare.all(board)
    forked(bare, clone)


def test_thief_rewrites(tmp_path: Path) -> None:
    """He changes a record that was acknowledged, makes the chain anew with the key, and has the
    board tell it again."""
    bare, board = told_all(tmp_path)
    bodies = [body.replace(b'"task":"1"', b'"task":"7"') for body in board.records]
    board.records, board.links = [], board.links[:1]
    for body in bodies:
        board.write_raw(body)
    board.acked = 0
    forked(bare, board)
    assert b'"task":"1"' in b"".join(row.body for row in bare.rows(Record))


def test_thief_rolls_back(tmp_path: Path) -> None:
    bare, board = told_all(tmp_path)
    image = copy.deepcopy(board)
    for number in range(3):
        board.write("event", what="supervisor", task=f"later {number}")
    bare.all(board)
    image.power_up()
    image.boot = board.boot + 1
    image.write("event", what="supervisor", task="another")
    forked(bare, image)


def test_thief_bridges(site: Site) -> None:
    """A wire over the contactor: a car charges, without a session. The EVSE goes out of service,
    and whoever charges next pays for none of it."""
    site.pins[1].welded = True
    site.pins[1].car = "C"
    bridged = site.real[1].shown_wh()
    site.run(5 * MINUTE, 1000)
    taken = site.real[1].shown_wh() - bridged
    assert taken > 800 and site.told("start") == []
    assert [f["fault"] for f in site.told("event", what="fault")] == ["contactor_welded"]
    site.pins[1].welded = False
    site.pins[1].car = "A"
    site.run(3000)
    site.command("SET_AVAILABILITY", {"evse": 1, "operative": True})
    site.run(3000)
    site.pins[1].car = "C"
    site.command("START_SESSION", {"evse": 1, "token": BERT})
    site.run(10_000)
    (started,) = site.told("start")
    outside = [r["outside_wh"] for t in ("meter", "start") for r in site.told(t)]
    assert abs(sum(outside) - taken) <= 60 and started["outside_wh"] > 800


# --- an eMSP


@pytest.fixture
def cpo(tmp_path: Path) -> Iterator[Cpo]:
    """A gateway with a board, one eMSP that charges there, and its client."""
    cpo = Cpo(tmp_path)
    yield cpo
    cpo.close()


def test_emsp_touches_others(cpo: Cpo) -> None:
    """A session that runs, and a reservation: not seen, not stopped, not unlocked, not cancelled,
    not replaced by another; for the one whose they are, the same words count."""
    other = FakeEmsp(party_id="OTH")
    second = Board("DEMO-2", "ab" * 32)
    second.hello()
    second.status("AVAILABLE")
    cpo.gateway.talk(second)
    try:
        client = other.register(cpo.gateway, "registration-token-2")
        theirs = {"response_url": f"{other.url}/results/1"}
        cpo.charge("S1")
        reserve = cpo.reserve_body(evse_uid="E2")
        assert cpo.command("RESERVE_NOW", reserve) == "ACCEPTED"
        second.write("event", what="alive")
        cpo.gateway.talk(second)
        held = second.take("RESERVE_NOW")
        second.reserve(held, "S2")
        cpo.gateway.talk(second)
        assert len(cpo.client.ask("GET", "sessions")[2]) == 2
        assert client.raw("GET", "sessions").json()["data"] == []

        stop: dict[str, Any] = {"session_id": "S1"}
        unlock = {"location_id": "LOC1", "evse_uid": "E1", "connector_id": "1"}
        cancel = {"reservation_id": "R1"}
        again = reserve | {"token": token(party_id="OTH")} | theirs
        assert cpo.command("STOP_SESSION", stop | theirs, client) == "REJECTED"
        assert cpo.command("UNLOCK_CONNECTOR", unlock | theirs, client) == "REJECTED"
        assert cpo.command("CANCEL_RESERVATION", cancel | theirs, client) == "ACCEPTED"
        until(lambda: other.pushes("POST", "results/1"))
        assert other.pushes("POST", "results/1")[0]["result"] == "UNKNOWN_RESERVATION"
        assert cpo.command("RESERVE_NOW", again, client) in ("ACCEPTED", "REJECTED")
        heard = hears(cpo, cpo.board) + hears(cpo, second)
        assert not {c["type"] for c in heard} & {
            "STOP_SESSION", "UNLOCK_CONNECTOR", "CANCEL_RESERVATION"
        }  # fmt: skip
        for c in heard:  # its own R1 is another reservation
            assert c["data"]["reservation_id"] != held["data"]["reservation_id"]

        ours = {"response_url": cpo.url(2)}
        assert cpo.command("STOP_SESSION", stop | ours) == "ACCEPTED"
        assert cpo.command("UNLOCK_CONNECTOR", unlock | ours) == "ACCEPTED"
        assert cpo.command("CANCEL_RESERVATION", cancel | ours) == "ACCEPTED"
        heard = hears(cpo, cpo.board) + hears(cpo, second)
        assert {c["type"] for c in heard} >= {
            "STOP_SESSION", "UNLOCK_CONNECTOR", "CANCEL_RESERVATION"
        }  # fmt: skip
    finally:
        other.stop()


def hears(cpo: Cpo, board: Board) -> list[dict[str, Any]]:
    """What a board is commanded from now on."""
    known = len(board.commands)
    board.write("event", what="alive")
    cpo.gateway.talk(board)
    return list(board.commands[known:])


def test_emsp_speaks_to_the_board(cpo: Cpo) -> None:
    """Of its words a board gets the token's four that identify and an authorization_reference,
    by their shape; ids are the gateway's. The board looks at the shape again."""
    marked = token() | {
        "contract_id": "MARK-1", "visual_number": "MARK-2", "issuer": "MARK-3",
        "group_id": "MARK-4",
    }  # fmt: skip
    body = cpo.reserve_body(
        reservation_id="MARK-5", token=marked, authorization_reference="REF", more="MARK-6",
        response_url=cpo.url() + "/MARK-7",
    )  # fmt: skip
    assert cpo.command("RESERVE_NOW", body) == "ACCEPTED"
    (order,) = hears(cpo, cpo.board)
    assert "MARK" not in json.dumps(order) and order["data"]["authorization_reference"] == "REF"
    for wrong in (
        {"authorization_reference": "x" * 37}, {"authorization_reference": {"a": 1}},
        {"reservation_id": "x" * 37}, {"reservation_id": 7}, {"token": marked | {"uid": "x" * 37}},
        {"token": marked | {"uid": ["x"]}}, {"token": marked | {"type": "x"}}, {"token": None},
    ):  # fmt: skip
        answer = cpo.client.ask("POST", "commands/RESERVE_NOW", body | wrong)
        assert answer[1] != 1000 or answer[2]["result"] == "REJECTED", wrong
    assert hears(cpo, cpo.board) == []
    for wrong in ({"reservation_id": "x" * 37}, {"authorization_reference": "x" * 37}):
        assert not commands.well_formed(order | {"data": order["data"] | wrong})
    for uid in ("x" * 37, ["x"], None):
        assert tokens.clean(order["data"]["token"] | {"uid": uid}) is None


def test_emsp_calls_elsewhere(tmp_path: Path) -> None:
    """Who listens there is told the word of a command, under the eMSP's own token, and nothing
    else; and where he sends the gateway on to, it does not go."""
    desk, inside, beyond = Desk(tmp_path), FakeEmsp(), FakeEmsp()
    try:
        desk.board.status("AVAILABLE")
        desk.talk()
        desk.settle()
        on = Response(status_code=307, headers={"location": f"{beyond.url}/further"})
        inside.script = [lambda method, path: on] * 1000
        body = {"response_url": f"{inside.url}/inside", "token": token(), "location_id": "LOC1",
                "evse_uid": "E1"}  # fmt: skip
        desk.client.ask("POST", "commands/START_SESSION", body)
        desk.talk()
        desk.board.result(desk.board.take("START_SESSION"), "REJECTED")
        desk.talk()

        def tried() -> bool:
            desk.clock.advance(50)
            return len(inside.received) >= 2

        until(tried)
        for method, path, told in inside.received:
            assert (method, path) == ("POST", "inside")
            assert told["result"] == "REJECTED" and set(told) <= {"result", "message"}
        theirs = "Token " + base64.b64encode(desk.emsp.token_b.encode()).decode()
        assert {shown["authorization"] for shown in inside.headers} == {theirs}
        assert beyond.received == []
    finally:
        for one in (desk.close, inside.stop, beyond.stop):
            one()


# --- a backup of the gateway


def test_backup_has_tokens(tmp_path: Path) -> None:
    """What an eMSP calls with is in no file of the gateway's."""
    gateway = Gateway(tmp_path)
    with gateway:
        emsp = FakeEmsp()
        try:
            client = emsp.register(gateway)
            assert client.ask("GET", "locations")[0] == 200
            token = client.token
        finally:
            emsp.stop()
    files = [path.read_bytes() for path in tmp_path.glob("gateway.sqlite3*")]
    assert files and all(token.encode() not in content for content in files)
