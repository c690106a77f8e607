"""Boards towards the gateway: stored once, acknowledged when durable, and never fooled."""

from __future__ import annotations

import base64
import copy
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from host_tests.gateway_kit import ADMIN, Bare, Clock, Gateway, board_token, until
from host_tests.uplink_peer import Board, MqttBoard, _hmac
from tools.broker import free_port
from tools.gateway import ocpi
from tools.gateway.store import Alarm, CdrRow, Command, Evse, Record, SessionRow, Station


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(tmp_path)


def test_records_are_stored_with_their_bytes(bare: Bare) -> None:
    board = Board()
    board.hello()
    board.status("AVAILABLE")
    head = bare.up(board)
    assert head is not None and head["ack"] == 3 and head["journal"] == board.journal
    assert head["re"] == board.up_ms and head["unix_ms"] == bare.clock()
    stored = [(row.seq, row.body, row.link) for row in bare.rows(Record)]
    assert stored == [(n + 1, board.records[n], board.links[n + 1]) for n in range(3)]


def test_a_lost_answer_stores_nothing_twice(bare: Bare) -> None:
    """QoS 0: the board sends the same records in new messages until an ack arrives."""
    board = Board()
    board.hello()
    for _ in range(4):
        assert bare.south.handle("DEMO-1", board.message(), "mqtt") is not None
    assert len(bare.rows(Record)) == 2
    bare.all(board)
    assert board.acked == 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_order_of_messages_stores_each_record_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Messages duplicated, dropped, delayed: in the end the store is the journal."""
    bare = Bare(tmp_path_factory.mktemp("order"))
    board = Board()
    board.hello()
    old: list[bytes] = []
    for _ in range(data.draw(st.integers(1, 12))):
        board.write("event", what="supervisor", task=str(len(board.records)))
        raw = board.message(limit=data.draw(st.integers(0, 3)))
        old.append(raw)
        if data.draw(st.booleans()):
            bare.up(board, raw)
        if data.draw(st.booleans()):
            bare.up(board, data.draw(st.sampled_from(old)))
    bare.all(board)
    assert [row.body for row in bare.rows(Record)] == board.records
    assert bare.rows(Alarm) == []


# --- bad input


def test_forged_reflected_and_foreign_messages_do_nothing(bare: Bare) -> None:
    board = Board()
    board.hello()
    good = board.message()
    answer = bare.south.handle("DEMO-1", good, "mqtt")
    assert answer is not None
    before = [(row.journal, row.boot, row.up_ms, row.n) for row in bare.rows(Station)]
    forged = good[:70] + bytes([good[70] ^ 1]) + good[71:]
    stranger = Board(key="ff" * 32)
    stranger.hello()
    wrong_kid = Board(kid=2)
    wrong_kid.hello()
    for raw in (forged, answer, stranger.message(), wrong_kid.message(), b"", b"\n", b"x" * 5000):
        assert bare.south.handle("DEMO-1", raw, "mqtt") is None
    assert bare.south.handle("DEMO-2", good, "mqtt") is None
    assert bare.south.handle("NOBODY", good, "mqtt") is None
    assert bare.refused() == {"mac": 3, "kid": 1, "shape": 2, "size": 1}
    assert bare.refused("DEMO-2") == {"mac": 1}
    assert bare.refused("(unknown)") == {"station": 1}
    assert len(bare.rows(Record)) == 2
    assert [(row.journal, row.boot, row.up_ms, row.n) for row in bare.rows(Station)] == before


def _resigned(board: Board, change: dict[str, Any], bodies: list[bytes] | None = None) -> bytes:
    """The last message with other header fields and a right MAC."""
    _, head, *lines = board.last_up.split(b"\n")
    fields = json.loads(head) | change
    kept = {name: value for name, value in fields.items() if value is not ...}
    rest = b"\n".join([json.dumps(kept).encode(), *(lines if bodies is None else bodies)])
    return _hmac(board._key("up"), rest).hex().encode() + b"\n" + rest


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"sid": "xyz"},
        {"boot": -1},
        {"up_ms": "5"},
        {"up_ms": True},
        {"seq": 0},
        {"journal": "5F1C09AA"},
        {"clock": {"state": "perhaps"}},
        {"live": {"one": {"status": "AVAILABLE"}}},
        {"live": {"1": {"status": "FAULTED"}}},
        {"live": []},
        {"authorize": {"evse": 1}},
        {"prev": ...},
    ],
)
def test_a_header_that_is_none_does_nothing(bare: Bare, change: dict[str, Any]) -> None:
    board = Board()
    board.hello()
    board.message()
    assert bare.south.handle("DEMO-1", _resigned(board, change), "http") is None
    assert bare.refused() == {"header": 1} and bare.rows(Record) == []


def test_a_broken_chain_is_refused(bare: Bare) -> None:
    """Right MAC, wrong links: a board out of its mind acknowledges nothing."""
    board = Board()
    board.hello()
    board.message()
    wrong = "0" * 64
    for change in ({"head": wrong}, {"prev": wrong}, {"seq": 2}):
        assert bare.south.handle("DEMO-1", _resigned(board, change), "http") is None
    swapped = _resigned(board, {}, [board.records[1], board.records[0]])
    assert bare.south.handle("DEMO-1", swapped, "http") is None
    assert bare.refused() == {"chain": 4} and bare.rows(Record) == []
    assert bare.up(board) is not None


def test_a_replayed_message_changes_nothing(bare: Bare) -> None:
    """An old message, authentic as it is, brings back no status, no sid, no answer."""
    board = Board()
    board.hello()
    board.status("AVAILABLE")
    bare.all(board)
    old = board.last_up
    board.status("CHARGING", plugged=True)
    bare.all(board)
    board.power_up()
    board.hello()
    bare.all(board)
    evse = bare.rows(Evse)[0]
    n = bare.rows(Station)[0].n
    assert bare.south.handle("DEMO-1", old, "mqtt") is None
    assert bare.rows(Evse)[0].status == evse.status == "CHARGING"
    station = bare.rows(Station)[0]
    assert (station.sid, station.boot, station.n) == (board.sid, 2, n)
    assert bare.refused() == {"repeated": 1} and bare.rows(Alarm) == []


def test_a_record_nobody_can_read_is_kept_and_named(bare: Bare) -> None:
    """It must not block the journal behind it."""
    board = Board()
    board.hello()
    board.write_raw(b"not json")
    board.write_raw(b'{"t":"status","boot":1,"up_ms":1}')
    board.write_raw(b'{"t":"novelty","boot":1,"up_ms":1}')
    board.write_raw(b'{"t":"event","what":"novelty","boot":1,"up_ms":1}')
    bare.all(board)
    assert len(bare.rows(Record)) == 6
    assert [(alarm.kind, alarm.first) for alarm in bare.rows(Alarm)] == [
        ("unreadable", 3),
        ("unreadable", 4),
    ]


# --- gaps, forks, lives


def test_a_gap_is_recorded_once_and_passed(bare: Bare) -> None:
    board = Board()
    board.hello()
    bare.all(board)
    for number in range(8):
        board.write("event", what="supervisor", task=str(number))
    board.first = 6  # 3, 4, 5 fell out of the journal before they were acknowledged
    bare.all(board)
    bare.up(board)
    assert [(alarm.kind, alarm.first, alarm.last) for alarm in bare.rows(Alarm)] == [("gap", 3, 5)]
    assert [row.seq for row in bare.rows(Record)] == [1, 2, 6, 7, 8, 9, 10]
    assert board.acked == 10


def test_a_message_beyond_what_is_stored_is_asked_for_again(bare: Bare) -> None:
    """The gateway lost its newest pages; the board still keeps the records."""
    board = Board()
    board.hello()
    for number in range(4):
        board.write("event", what="supervisor", task=str(number))
    head = bare.up(board, board.message(after=3))
    assert head is not None and head["ack"] == 0
    assert bare.rows(Record) == [] and bare.rows(Alarm) == []
    bare.all(board)
    assert [row.seq for row in bare.rows(Record)] == [1, 2, 3, 4, 5, 6]


def test_two_boards_with_one_identity(bare: Bare) -> None:
    """Same journal, same sequence, another link: fork, quarantine, no ack, no commands."""
    board = Board()
    board.hello()
    bare.all(board)
    clone = copy.deepcopy(board)
    clone.power_up()
    board.write("event", what="supervisor", task="one")
    bare.all(board)
    command = bare.queue("RESET", {})
    clone.write("event", what="supervisor", task="two")
    head = bare.up(clone)
    assert head is not None and "ack" not in head and "commands" not in head
    assert [(alarm.kind, alarm.first) for alarm in bare.rows(Alarm)] == [("fork", 3)]
    assert bare.rows(Station)[0].quarantine is not None
    assert bare.rows(Evse)[0].status == "UNKNOWN"
    board.write("event", what="supervisor", task="three")
    head = bare.up(board)
    assert head is None or ("ack" not in head and "commands" not in head)
    assert len(bare.rows(Record)) == 3
    bare.south.release("DEMO-1")
    board.power_up()  # the clone is found and taken away
    board.boot = clone.boot + 1
    board.hello()
    bare.all(board)
    bare.up(board)
    assert command.id in board.seen


def test_a_fork_shows_without_records_too(bare: Bare) -> None:
    board = Board()
    board.hello()
    clone = copy.deepcopy(board)
    clone.write_raw(b'{"t":"event","boot":1,"up_ms":1,"what":"supervisor","task":"x"}')
    board.write_raw(b'{"t":"event","boot":1,"up_ms":1,"what":"supervisor","task":"y"}')
    bare.all(board)
    clone.sleep(10_000)
    clone.acked = 3
    head = bare.up(clone, clone.message())
    assert head is not None and "ack" not in head
    assert [alarm.kind for alarm in bare.rows(Alarm)] == ["fork"]


def test_a_new_journal_supersedes_the_old_one(bare: Bare) -> None:
    old = Board()
    old.hello()
    old.status("AVAILABLE")
    bare.all(old)
    last = old.last_up
    new = Board(unix_ms=old.unix_ms)
    new.write("event", what="journal_new", why="corrupt")
    new.hello()
    new.status("CHARGING", plugged=True)
    bare.all(new)
    assert bare.rows(Evse)[0].status == "CHARGING"  # though its boots count from 1 again
    assert bare.south.handle("DEMO-1", last, "mqtt") is None  # a replay is no fork
    assert bare.rows(Alarm) == []
    old.status("AVAILABLE")
    assert bare.south.handle("DEMO-1", old.message(), "mqtt") is None
    assert [alarm.kind for alarm in bare.rows(Alarm)] == ["fork"]
    assert bare.rows(Evse)[0].board_status == "CHARGING"


LOST: list[tuple[dict[str, Any], tuple[int, int] | None]] = [
    # what the board knows of the journal that is gone, and the gap that is shown (0: who knows)
    ({"class_": "rebuilt"}, (4, 0)),
    ({"class_": "corrupt", "last": 9}, (4, 9)),
    ({"class_": "corrupt", "last": 2}, (4, 0)),  # at least so far: of more, nobody knows
    ({"class_": "rebuilt", "journal": "OLD", "last": 7}, (4, 7)),
    ({"class_": "empty", "journal": "OLD", "last": 7}, (4, 7)),
    ({"class_": "rebuilt", "journal": "OLD", "last": 3}, None),  # all of it had been told
    ({"class_": "empty", "journal": "0badcafe", "last": 7}, None),  # another station's
]


@pytest.mark.parametrize(("told", "gap"), LOST)
def test_what_a_lost_journal_had_is_a_gap_with_its_reason(
    bare: Bare, told: dict[str, Any], gap: tuple[int, int] | None
) -> None:
    old = Board()
    old.hello()
    old.status("AVAILABLE")
    bare.all(old)  # 3 records
    new = Board(unix_ms=old.unix_ms)
    if told.get("journal") == "OLD":
        told = told | {"journal": old.journal}
    new.write("boot", fw="0", cause="power", slot="a", board="virtual", evses=[])
    new.write("event", what="journal_new", why=told["class_"])
    new.write("lost", **{"class": told["class_"]} | {k: told[k] for k in told if k != "class_"})
    bare.all(new)
    alarms = bare.rows(Alarm)
    if gap is None:
        assert alarms == []
        return
    (alarm,) = alarms
    assert (alarm.kind, alarm.journal, alarm.first, alarm.last) == ("gap", old.journal, *gap)
    assert told["class_"] in alarm.text and "records 4" in alarm.text
    assert bare.up(new) is not None and len(bare.rows(Alarm)) == 1


def test_a_session_that_its_board_forgot_ends_with_what_is_on_record(bare: Bare) -> None:
    """Nobody will ever write its stop: at the eMSP it would charge for ever."""
    old = Board()
    old.hello()
    old.start("S1", board_token())
    old.period("S1", 1500, 900_000)
    end_ms = old.unix_ms
    old.live["1"] |= {"session": "S1", "wh": 1900}
    bare.all(old)
    assert json.loads(bare.rows(SessionRow)[0].object)["kwh"] == 1.9
    new = Board(unix_ms=old.unix_ms + 60_000)
    new.write("boot", fw="0", cause="power", slot="a", board="virtual", evses=[])
    new.write("event", what="journal_new", why="rebuilt")
    new.write("lost", **{"class": "rebuilt"})
    bare.all(new)
    (row,) = bare.rows(SessionRow)
    session = json.loads(row.object)
    assert (row.status, row.end_cause, session["kwh"]) == ("COMPLETED", "journal_lost", 1.5)
    assert session["end_date_time"] == ocpi.format_datetime(end_ms)
    (cdr,) = bare.rows(CdrRow)
    assert json.loads(cdr.object)["remark"].startswith("ended by: journal_lost")


# --- down


def test_n_rises_over_boots_and_restarts(tmp_path: Path) -> None:
    board = Board()
    board.hello()
    bare = Bare(tmp_path)
    bare.all(board)
    highest = board.down[-1]["n"]
    again = Bare(tmp_path, bare.clock)  # the same database, another process
    board.power_up()
    board.hello()
    again.all(board)
    assert board.down[-1]["n"] > highest and board.refused == []


def test_a_restored_database_is_heard_at_once(tmp_path: Path) -> None:
    """The board goes on under the same sid, having heard more than the backup knows of."""
    board = Board()
    board.hello()
    Bare(tmp_path).all(board)
    clock = Clock(board.unix_ms)
    with (
        closing(sqlite3.connect(tmp_path / "gateway.sqlite3")) as live,
        closing(sqlite3.connect(tmp_path / "backup.sqlite3")) as backup,
    ):
        live.backup(backup)
    lost = Bare(tmp_path, clock)
    for number in range(20):
        board.write("event", what="supervisor", task=str(number))
        board.sleep(1_000)
        clock.advance(1_000)
        lost.all(board)
    highest, sid = board.last_n, board.sid
    database = f"sqlite:///{tmp_path}/backup.sqlite3"
    restored = Bare(tmp_path, clock, database=database)
    assert restored.rows(Station)[0].n < highest
    command = restored.queue("RESET", {})
    board.sleep(1_000)
    clock.advance(1_000)
    head = restored.up(board)
    assert head is not None and head["n"] > highest and head["sid"] == sid
    assert board.refused == [] and board.seen == [command.id]


def test_n_rises_within_a_millisecond_and_with_a_clock_set_back(bare: Bare) -> None:
    board = Board()
    board.hello()
    for _ in range(3):
        board.sleep(1)
        assert bare.up(board) is not None
    bare.clock.advance(-3_600_000)
    assert bare.up(board) is not None and board.refused == []


def test_a_command_is_repeated_until_its_result(bare: Bare) -> None:
    board = Board()
    board.hello()
    bare.up(board, link="mqtt")
    command = bare.queue("RESET", {})
    bare.south.push("DEMO-1")
    (station_id, raw) = bare.pushed.pop()
    head = board.receive(raw)
    assert station_id == "DEMO-1" and head is not None and "re" not in head
    assert [entry["id"] for entry in head["commands"]] == [command.id]
    bare.south.tick()
    assert bare.pushed == []  # not yet
    bare.clock.advance(6_000)
    bare.south.tick()
    head = board.receive(bare.pushed.pop()[1])
    assert head is not None and [entry["id"] for entry in head["commands"]] == [command.id]
    assert board.refused == []
    board.result(board.take("RESET"), "ACCEPTED")
    bare.all(board)
    bare.clock.advance(6_000)
    bare.south.tick()
    assert bare.pushed == [] and "commands" not in board.down[-1]
    assert bare.rows(Command)[0].result == "ACCEPTED"


def test_a_command_survives_a_restart(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    command = bare.queue("RESET", {})
    board = Board()
    board.hello()
    bare = Bare(tmp_path, bare.clock)
    bare.up(board)
    bare.up(board)
    assert board.seen == [command.id]


def test_the_first_answer_of_a_boot_is_short(bare: Bare) -> None:
    """A board needs it for its time. A long command, as a SET_CONFIG on trial, comes with the
    next one: where the heap has no room for it then, the result goes up all the same."""
    board = Board()
    for boot in (1, 2):
        ca = base64.b64encode(bytes([boot]) * 600).decode()
        command = bare.queue("SET_CONFIG", {"secrets": {"tls": {"ca": ca}}})
        board.hello()
        head = bare.up(board)
        assert head is not None and "re" in head and "commands" not in head
        head = bare.up(board)
        assert head is not None and command.id in [c["id"] for c in head["commands"]]
        board.power_up()


def test_an_ack_that_was_not_heard_comes_without_commands(bare: Bare) -> None:
    """So that records get through, whatever is too long for the board to read."""
    board = Board()
    board.hello()
    bare.all(board)
    command = bare.queue("RESET", {})
    for _ in range(2):
        board.write("event", what="supervisor", task="x")
        raw = bare.south.handle("DEMO-1", board.message(), "mqtt")
        assert raw is not None and command.id.encode() in raw  # it does not hear this one
        head = bare.up(board)
        assert head is not None and "commands" not in head and head["ack"] == len(board.records)
    head = bare.up(board)
    assert head is not None and [c["id"] for c in head["commands"]] == [command.id]


def test_an_expired_command_is_not_sent(bare: Bare) -> None:
    bare.queue("RESET", {})
    bare.clock.advance(20_000)
    bare.south.tick()
    board = Board()
    board.hello()
    bare.up(board)
    assert board.commands == [] and bare.rows(Command)[0].state == "timeout"


def test_at_most_four_commands_in_4096_bytes(bare: Bare) -> None:
    for number in range(9):
        bare.queue("STOP_SESSION", {"session_id": f"{number}" * 36})
    board = Board()
    board.hello()
    bare.up(board)
    raw = bare.south.handle("DEMO-1", board.message(), "http")
    assert raw is not None and len(raw) <= 4096
    board.receive(raw)
    assert [command["data"]["session_id"][0] for command in board.commands] == list("0123")


def test_bad_command_data_never_leaves(bare: Bare) -> None:
    with pytest.raises(ValueError, match="session_id"):
        bare.queue("STOP_SESSION", {"session_id": "x" * 37})


def test_authorize_without_a_known_token(bare: Bare) -> None:
    board = Board()
    board.hello()
    board.authorize = {"evse": 1, "type": "RFID", "uid": "04FFFFFF"}
    bare.up(board)
    assert board.take("AUTHORIZE")["data"] == {
        "evse": 1,
        "uid": "04FFFFFF",
        "allowed": "NOT_ALLOWED",
    }


# --- the picture of now


def test_live_moves_forward_only(bare: Bare) -> None:
    board = Board()
    board.hello()
    board.start("S1", board_token())
    bare.all(board)

    def kwh() -> str:
        return str(json.loads(bare.rows(SessionRow)[0].object)["kwh"])

    for wh, told in ((1500, "1.5"), (1499, "1.5"), (1501, "1.501")):
        board.live["1"] |= {"session": "S1", "wh": wh, "w": 11000}
        bare.up(board)
        assert kwh() == told
    stamps = bare.rows(SessionRow)[0].last_updated_ms
    board.period("S1", 1200, 60_000)  # the journal is behind the picture
    bare.all(board)
    assert kwh() == "1.501" and bare.rows(SessionRow)[0].last_updated_ms > stamps
    board.period("S1", 800, 60_000)
    board.stop("S1")
    bare.all(board)
    assert kwh() == "2"  # at the end, the journal's word


def test_status_of_the_backlog_does_not_overtake_live(bare: Bare) -> None:
    board = Board()
    board.hello()
    for _ in range(6):
        board.status("RESERVED")
        board.sleep(1000)
    board.live["1"] = {"status": "CHARGING", "plugged": True}
    bare.up(board, board.message(limit=2))
    assert bare.rows(Evse)[0].status == "CHARGING"
    bare.all(board)
    assert bare.rows(Evse)[0].status == "CHARGING"


def test_silence_and_last_will_make_the_status_unknown(bare: Bare) -> None:
    board = Board()
    board.hello()
    board.status("AVAILABLE")
    bare.all(board)
    bare.south.offline_hint("DEMO-1")
    assert bare.rows(Evse)[0].status == "UNKNOWN"
    bare.up(board)
    assert bare.rows(Evse)[0].status == "AVAILABLE"
    bare.clock.advance(181_000)
    bare.south.tick()
    assert bare.rows(Evse)[0].status == "UNKNOWN"
    assert [row.online for row in bare.rows(Station)] == [False, False]


# --- brief pictures


def charging(bare: Bare) -> Board:
    """A board in a session, of which the gateway knows all."""
    board = Board()
    board.hello()
    board.start("S1", board_token())
    board.live["1"] |= {"session": "S1", "wh": 10, "w": 3000}
    bare.all(board)
    return board


def pictured(bare: Bare) -> tuple[int, int | None, str, bool]:
    row = bare.rows(Evse)[0]
    return bare.rows(SessionRow)[0].live_wh, row.power_w, row.status, row.plugged


def test_a_brief_picture_moves_what_flows_and_gets_no_answer(bare: Bare) -> None:
    board = charging(bare)
    assert board.down[-1]["brief_s"] == 960
    assert pictured(bare) == (10, 3000, "CHARGING", True)
    board.live["1"] |= {"wh": 1500, "w": 11000}
    assert bare.south.handle("DEMO-1", board.brief(), "mqtt") == b""
    assert pictured(bare) == (1500, 11000, "CHARGING", True)
    assert json.loads(bare.rows(SessionRow)[0].object)["kwh"] == 1.5
    del board.live["1"]["w"]  # the meter is silent: its power is unknown
    bare.south.handle("DEMO-1", board.brief(), "mqtt")
    assert pictured(bare) == (1500, None, "CHARGING", True)
    board.period("S1", 2000, 60_000)  # and what is written down is not held up
    bare.all(board)
    assert bare.refused() == {} and bare.rows(Alarm) == []


def test_a_brief_picture_out_of_turn_moves_nothing(bare: Bare) -> None:
    board = charging(bare)
    board.live["1"] |= {"wh": 1500, "w": 11000}
    old = board.brief()
    bare.south.handle("DEMO-1", old, "mqtt")
    board.live["1"] |= {"wh": 1600, "w": 0}
    overtaken = board.brief()
    bare.up(board)
    seen = pictured(bare)
    for raw in (old, overtaken):
        assert bare.south.handle("DEMO-1", raw, "mqtt") is None
    forged = board.brief()[:-1] + b" }"
    assert bare.south.handle("DEMO-1", forged, "mqtt") is None
    lines = b"\n".join([board.brief()[65:], board.records[0]])
    records = _hmac(board._key("up"), lines).hex().encode() + b"\n" + lines
    assert bare.south.handle("DEMO-1", records, "mqtt") is None
    assert bare.refused() == {"repeated": 2, "mac": 1, "shape": 1}
    board.sleep(60_000)
    late = board.brief(live={"1": {"wh": 9999}})
    board.power_up()
    board.hello()
    bare.all(board)
    answer = bare.south.handle("DEMO-1", late, "mqtt")  # of the boot before: nobody takes this
    assert answer and json.loads(answer[65:])["sid"] != board.sid
    assert pictured(bare) == seen
    command = bare.queue("RESET", {})  # is not spent on it either
    bare.up(board, link="mqtt")
    bare.clock.advance(5_000)
    late = board.brief(sid=json.loads(late[65:])["sid"])
    answer = bare.south.handle("DEMO-1", late, "mqtt")
    assert answer and "commands" not in json.loads(answer[65:])
    bare.south.tick()
    assert command.id.encode() in bare.pushed[-1][1]


def test_a_gateway_that_lost_records_asks_for_them_at_the_next_brief_picture(
    tmp_path: Path,
) -> None:
    board = charging(Bare(tmp_path))
    with (
        closing(sqlite3.connect(tmp_path / "gateway.sqlite3")) as live,
        closing(sqlite3.connect(tmp_path / "backup.sqlite3")) as backup,
    ):
        live.backup(backup)
    lost = Bare(tmp_path)
    board.period("S1", 700, 60_000)
    lost.all(board)
    highest = board.acked
    restored = Bare(tmp_path, Clock(board.unix_ms), database=f"sqlite:///{tmp_path}/backup.sqlite3")
    head = restored.up(board, board.brief(live={"1": {"wh": 701}}))
    assert head is not None and head["ack"] < highest and "re" not in head
    assert pictured(restored)[0] == 10  # of a session that it does not know the end of
    restored.all(board)
    assert len(restored.rows(Record)) == highest
    # a boot that the backup does not know
    board.power_up()
    board.hello()
    lost.all(board)
    head = restored.up(board, board.brief())
    assert head is not None and head["sid"] == board.sid and head["ack"] < board.acked + 1


def test_brief_pictures_keep_a_station_online_and_fetch_commands(bare: Bare) -> None:
    board = charging(bare)
    for _ in range(5):
        bare.clock.advance(60_000)
        assert bare.south.handle("DEMO-1", board.brief(), "http") == b""
        bare.south.tick()
        assert bare.rows(Station)[0].online
    command = bare.queue("GET_HEALTH", {})
    head = bare.up(board, board.brief())
    assert head is not None and [c["id"] for c in head["commands"]] == [command.id]
    bare.clock.advance(181_000)
    bare.south.tick()
    assert not bare.rows(Station)[0].online


def test_brief_pictures_are_not_asked_for_where_whole_ones_are_needed(tmp_path: Path) -> None:
    board = charging(Bare(tmp_path, brief_s=0))
    assert all("brief_s" not in head for head in board.down)
    bare = Bare(tmp_path)  # while a key is being replaced, answers tell who has which
    with bare.store.begin() as db:
        asked = bare.desk.keys.ask(db, "DEMO-1", bytes(32))
        bare.desk.keys.answered(db, "DEMO-1", asked, "11" * 32)
    for _ in range(2):  # one of two answers is under the old key
        bare.up(board)
    assert "brief_s" not in board.down[-1]


def test_a_brief_picture_of_two_boards_with_one_identity(bare: Bare) -> None:
    board = charging(bare)
    twin = copy.deepcopy(board)
    twin.power_up()
    bare.up(twin)
    head = bare.up(board, board.brief())  # the other has spoken since: it must show its chain
    assert head is not None and "re" not in head
    board.write("event", what="alive")
    twin.write("event", what="supervisor", task="twin")
    bare.up(twin)
    bare.up(board)
    assert [alarm.kind for alarm in bare.rows(Alarm)] == ["fork"]
    assert bare.south.handle("DEMO-1", twin.brief(), "http") == b""


# --- links


def test_http_link(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        board = Board()
        board.hello()
        gateway.talk(board)
        assert gateway.station()["ack"] == 2 and gateway.station()["link"] == "http"
        url = f"{gateway.url}/wattlock/1/DEMO-1"
        assert httpx.post(url, content=b"nonsense").status_code == 403
        assert httpx.post(url, content=b"x" * 5000).status_code == 413
        assert httpx.get(url).status_code == 405
        nothing = httpx.post(url, content=board.brief())
        assert (nothing.status_code, nothing.content) == (200, b"")
        assert gateway.station()["refused"] == {"shape": 1}


def test_admin_wants_its_token_and_tells_no_secret(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            for path in ("stations", "outbox", "stations/DEMO-1/records", "commands/x"):
                reply = httpx.get(f"{gateway.url}/admin/{path}", headers=headers)
                assert reply.status_code == 401
        good = {"Authorization": f"Bearer {ADMIN}"}
        shown = httpx.get(f"{gateway.url}/admin/stations", headers=good).text
        assert "00112233" not in shown and "registration" not in shown
    with Gateway(tmp_path, admin_token=None) as gateway:
        assert httpx.get(f"{gateway.url}/admin/stations", headers=good).status_code == 404


def test_operator_commands(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        url = f"{gateway.url}/admin/stations"
        good = {"Authorization": f"Bearer {ADMIN}"}

        def order(station_id: str, body: Any) -> httpx.Response:
            return httpx.post(f"{url}/{station_id}/commands", json=body, headers=good)

        asked = order(
            "DEMO-1", {"type": "SET_AVAILABILITY", "data": {"evse": 1, "operative": False}}
        )
        assert asked.status_code == 202
        board = Board()
        board.hello()
        gateway.talk(board)
        gateway.talk(board)
        board.result(board.take("SET_AVAILABILITY"), "ACCEPTED", evse=1)
        gateway.talk(board)
        state = gateway.admin(f"commands/{asked.json()['id']}")
        assert (state["state"], state["result"]) == ("done", "ACCEPTED")
        assert (
            order("DEMO-1", {"type": "SET_AVAILABILITY", "data": {"evse": 1}}).status_code == 400
        )
        assert order("DEMO-1", {"type": "EXPLODE"}).status_code == 404
        assert order("NOBODY", {"type": "RESET"}).status_code == 404
        assert order("DEMO-1", ["RESET"]).status_code == 400
        order("DEMO-1", {"type": "GET_HEALTH"})
        board.health = {"heap_free": 51000}
        gateway.talk(board)
        board.write("event", what="supervisor", task="x")
        gateway.talk(board)
        assert gateway.station()["health"] == {"heap_free": 51000}


@pytest.fixture
def broker_port() -> Iterator[int]:
    yield free_port()


def test_mqtt_reconnects_for_ever(tmp_path: Path, broker_port: int) -> None:
    """No broker at first, then one, then none, then one again: the journal arrives."""
    from host_tests.gateway_kit import process

    mqtt = {"host": "127.0.0.1", "port": broker_port, "tls": False}
    args = ("tools.broker", "--port", str(broker_port))
    board = Board()
    board.hello()
    with Gateway(tmp_path, mqtt=mqtt) as gateway:
        for _ in range(2):
            with process(*args):
                until(lambda: gateway.admin("stations")["mqtt"], 40)
                client = MqttBoard(board, broker_port)
                client.until(lambda: board.acked == len(board.records))
                client.close()
            until(lambda: not gateway.admin("stations")["mqtt"])
            board.write("event", what="supervisor", task="x")
        assert gateway.station()["ack"] == 2 + 1


def test_mqtt_retained_and_foreign_messages(tmp_path: Path, broker_port: int) -> None:
    from host_tests.gateway_kit import process

    mqtt = {"host": "127.0.0.1", "port": broker_port, "tls": False}
    with process("tools.broker", "--port", str(broker_port)):
        board = Board()
        board.hello()
        client = MqttBoard(board, broker_port)
        client.client.publish(
            "wattlock/1/DEMO-1/up", board.message(), retain=True
        ).wait_for_publish(5)
        with Gateway(tmp_path, mqtt=mqtt) as gateway:
            until(lambda: gateway.admin("stations")["mqtt"], 40)
            client.client.publish("wattlock/1/NOBODY/up", b"x")
            client.client.publish("wattlock/1/DEMO-1/up", b"forged")
            until(lambda: gateway.station()["refused"] == {"shape": 1})
            assert (
                gateway.station()["records"] == 0
            )  # the retained one came first, and did nothing
            assert gateway.admin("stations")["strangers"] == {"station": 1}
            client.until(lambda: board.acked == 2)
            context = gateway.context
            with context.store.begin() as db:
                context.desk.queue(db, "DEMO-1", "RESET", {}, gateway.clock())
            gateway.clock.advance(6_000)  # the repetition pushes it unasked
            with client.news:
                assert client.news.wait_for(lambda: bool(board.commands), 20)
            assert "re" not in board.down[-1]
        client.close()
