"""The journal tool on what a real board wrote, and on what somebody changed afterwards.

The board runs the firmware with small segments (1 KiB instead of 8), so that a few sessions fill
several; everything else is as it is deployed. Two decoders read the same flash, the tool's and the
firmware's own, and the gateway's copy is the third witness.
"""

from __future__ import annotations

import hmac
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from portable.store import Store
from wattlock import mac
from wattlock.journal import Journal as FirmwareJournal

from host_tests.scenario_kit import HEAP
from tools import build, journal, paths
from tools.stage import METER, STATION, Stage, until
from tools.virtual_board import image
from tools.virtual_board.client import VirtualBoard

Files = dict[str, bytes]
SESSIONS = 4


@dataclass
class Written:
    """What was left on the board's flash, and the gateway's database."""

    flash: Path
    files: Files
    secrets: Path
    gateway: Path

    @property
    def key(self) -> bytes:
        station_key = bytes.fromhex(json.loads(self.secrets.read_text())["key"])
        return journal.chain_key(station_key, STATION)


def small_segments(folder: Path) -> bytes:
    source = (paths.FIRMWARE / "wattlock" / "journal.py").read_text()
    assert "\nSEGMENT = 8188 " in source
    small = folder / "journal.py"
    small.write_text(source.replace("\nSEGMENT = 8188 ", "\nSEGMENT = 1024 "))
    return build.compile_mpy(small, "wattlock/journal.py")


@pytest.fixture(scope="module")
def written(micropython: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    folder = tmp_path_factory.mktemp("journal")
    evse = {"n": 1, "meter": METER, "bus": "rs485", "unit": 1, "max_a": 32, "free_vend": True}
    with Stage(folder, config={"evses": [evse], "live_s": 1}, heap=HEAP) as stage:
        board = stage.board
        stage.install()
        board.power_off()
        image.write_files(board.flash, {"/a/wattlock/journal.mpy": small_segments(folder)})
        board.power_on()
        for count in range(1, SESSIONS + 1):
            stage.plug("C")
            board.wait(contactor=1, timeout_s=30)
            board.fault("estop")
            board.wait(contactor=0, lock_feedback=0, timeout_s=30)
            stage.plug("A")
            board.fault("estop", on=False)
            until(f"stop {count}", lambda n=count: stops(stage) == n, 30)
            if count % 2:
                board.power_off()
                board.power_on()
        files: Files = {"": b""}
        while len(parted(files[max(files)])) < 4:  # a tail that can go and leave some
            board.power_off()
            known = len(stage.records())
            board.power_on()
            until("all told", lambda n=known: idle(stage.records()[n:]), 30)
            board.power_off()
            files = segments(board.flash)
        flash = folder / "flash.bin"
        flash.write_bytes(board.flash.read_bytes())
        yield Written(flash, files, folder / "secrets.json", folder / "gateway.sqlite3")


def idle(records: list[dict[str, Any]]) -> bool:
    """A boot has told its first words, and the time is the last of them."""
    return bool(records) and json.loads(records[-1]["body"])["t"] == "time"


def segments(flash: Path) -> Files:
    files = image.read_files(flash, "/journal").items()
    return {Path(n).name: data for n, data in files if n.endswith(".j")}


def stops(stage: Stage) -> int:
    return sum(json.loads(record["body"])["t"] == "stop" for record in stage.records())


# --- what the board wrote


def test_the_tool_the_firmware_and_the_gateway_read_the_same(written: Written) -> None:
    found = journal.read_image(written.flash)
    assert len(found.segments) >= 3 and not found.wrong and not found.torn
    seqs = [record.seq for record in found.records]
    assert seqs == list(range(1, len(seqs) + 1))
    kinds = [record.fields["t"] for record in found.records]
    assert kinds.count("stop") == kinds.count("start") == SESSIONS

    replayed: list[dict[str, Any]] = []
    station_key = bytes.fromhex(json.loads(written.secrets.read_text())["key"])
    agent = FirmwareJournal(Store(written.files), mac.purpose(station_key, "chain", STATION))
    assert agent.open(lambda state: None, replayed.append, lambda n: bytes(n)) == []
    newest = found.segments[-1]
    assert [record.fields for record in newest.records] == replayed
    assert agent.seq == seqs[-1]
    link = bytes.fromhex(newest.checkpoint["link"])
    for record in newest.records:
        link = journal.link(written.key, link, record)
    assert link == agent.link

    known = journal.gateway_records(written.gateway, STATION, newest.checkpoint["journal"])
    assert len(known) > 20
    bodies = {record.seq: record.body for record in found.records}
    assert {seq: body for seq, (body, _) in known.items()} == {seq: bodies[seq] for seq in known}
    assert journal.verify(found, written.key, known) == []


def test_show_export_and_verify(
    written: Written, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """From an image and from a folder of segments alike."""
    folder = tmp_path / "journal"
    folder.mkdir()
    for name, data in written.files.items():
        (folder / name).write_bytes(data)
    for place in (written.flash, folder):
        assert journal.main(["export", str(place)]) == 0
        exported = capsysbinary.readouterr().out.splitlines()
        assert exported == [r.body for r in journal.read_image(place).records]
        assert journal.main(["show", str(place)]) == 0
        shown = capsysbinary.readouterr().out.decode()
        assert shown.count("stop     ") == SESSIONS and "00000001.j: journal " in shown
        keyed = ["--secrets", str(written.secrets), "--station", STATION]
        assert journal.main(["verify", str(place), *keyed]) == 0
        assert f"{len(exported)} records, chain unbroken" in capsysbinary.readouterr().out.decode()
        assert journal.main(["verify", str(place), *keyed, "--gateway", str(written.gateway)]) == 0
        capsysbinary.readouterr()
    of_gateway = tmp_path / "gateway.json"
    of_board = json.loads(written.secrets.read_text())
    of_gateway.write_text(json.dumps({"stations": {STATION: {"kid": 1, "key": of_board["key"]}}}))
    keyed = ["--secrets", str(of_gateway), "--station", STATION]
    assert journal.main(["verify", str(written.flash), *keyed]) == 0
    assert b"only --acked or --gateway" in capsysbinary.readouterr().out
    last = journal.read_image(written.flash).last
    assert journal.main(["verify", str(written.flash), *keyed, "--acked", str(last)]) == 0
    assert b"only" not in capsysbinary.readouterr().out
    assert journal.main(["verify", str(written.flash), *keyed, "--acked", str(last + 1)]) == 1
    assert f"records {last + 1} to {last + 1} are gone" in capsysbinary.readouterr().out.decode()
    one = folder / max(written.files)
    assert journal.main(["export", str(one)]) == 0
    assert capsysbinary.readouterr().out.splitlines()[-1] == exported[-1]


# --- what somebody changed


def groups(data: bytes) -> list[bytes]:
    """The groups of a segment, each with head and CRC."""
    at, found = 0, []
    while at < len(data):
        size = 8 + int.from_bytes(data[at + 1 : at + 4], "little")
        found.append(data[at : at + size])
        at += size
    return found


def parted(data: bytes) -> list[bytes]:
    """The checkpoint with its state, then each group of records."""
    found = groups(data)
    records = [g for g in found if g[:1] == b"R"]
    return [b"".join(found[: len(found) - len(records)]), *records]


def group(old: bytes, payload: bytes) -> bytes:
    """`old` with another payload and a CRC that fits it."""
    head = old[:1] + len(payload).to_bytes(3, "little")
    return head + payload + struct.pack("<I", zlib.crc32(head + payload))


def edited(files: Files, name: str) -> None:
    """A digit of a Wh, or of whatever number the segment's last record has."""
    *kept, last = groups(files[name])
    payload = last[4:-4]
    at = next(i for i in range(len(payload) - 1, 3, -1) if payload[i : i + 1].isdigit())
    digit = b"1" if payload[at : at + 1] != b"1" else b"2"
    files[name] = b"".join([*kept, group(last, payload[:at] + digit + payload[at + 1 :])])


def removed(files: Files, name: str) -> None:
    checkpoint, first, second, *rest = parted(files[name])
    following = group(second, first[4:8] + second[8:-4])  # under the number of the one that went
    files[name] = b"".join([checkpoint, following, *rest])


def reordered(files: Files, name: str) -> None:
    checkpoint, first, second, *rest = parted(files[name])
    moved = group(first, second[4:8] + first[8:-4]), group(second, first[4:8] + second[8:-4])
    files[name] = b"".join([checkpoint, moved[1], moved[0], *rest])


def truncated(files: Files, name: str) -> None:
    files[name] = b"".join(groups(files[name])[:-1])


def gone(files: Files, name: str) -> None:
    del files[name]


def other_link(files: Files, name: str) -> None:
    checkpoint, *rest = groups(files[name])
    head = json.loads(checkpoint[4:-4])
    head["link"] = "00" * 32
    files[name] = b"".join([group(checkpoint, json.dumps(head).encode()), *rest])


def other_life(files: Files, name: str) -> None:
    checkpoint, *rest = groups(files[name])
    head = json.loads(checkpoint[4:-4]) | {"journal": "deadbeef"}
    files[name] = b"".join([group(checkpoint, json.dumps(head).encode()), *rest])


def scratched(files: Files, name: str) -> None:
    """A bit in the segment's last group but one, by somebody who knows of no CRC."""
    data = bytearray(files[name])
    data[-len(groups(files[name])[-1]) - 10] ^= 1
    files[name] = bytes(data)


def senseless(files: Files, name: str) -> None:
    checkpoint, *rest = groups(files[name])
    files[name] = b"".join([group(checkpoint, b'{"seq":"one"}'), *rest])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edited, "not what was written"),
        (scratched, "not what was written"),
        (removed, "not what was written|follows|missing"),
        (reordered, "not what was written|follows"),
        (truncated, "missing"),
        (gone, "missing"),
        (other_link, "not those that were written"),
        (other_life, "belongs to another journal"),
        (senseless, "no whole checkpoint"),
    ],
)
def test_a_changed_segment_is_named(
    written: Written, change: Callable[[Files, str], None], said: str
) -> None:
    """CRCs are made to fit, so that only the chain can tell; but for one."""
    files = dict(written.files)
    second = sorted(files)[1]
    change(files, second)
    found = journal.read_files(files)
    assert not found.torn
    wrong = journal.verify(found, written.key)
    assert wrong and any(word in text for text in wrong for word in said.split("|")), wrong
    place = sorted(written.files).index(second)
    near = sorted(written.files)[place : place + 2]
    assert any(text.startswith(name) for text in wrong for name in near), wrong


def test_a_first_segment_of_another_key_is_not_believed(written: Written) -> None:
    found = journal.read_files(written.files)
    for stranger in (
        journal.chain_key(bytes(32), STATION),
        journal.chain_key(bytes.fromhex(json.loads(written.secrets.read_text())["key"]), "OTHER"),
    ):
        assert any("not this station's" in text for text in journal.verify(found, stranger))


def test_old_segments_may_have_gone(written: Written) -> None:
    """What was acknowledged goes when its room is needed: the chain starts at a checkpoint. Who
    knows what was acknowledged knows what had to stay."""
    files = dict(written.files)
    del files[min(files)]
    found = journal.read_files(files)
    assert found.first == int(min(files)[:8], 16) > 2
    assert journal.verify(found, written.key) == []
    life = found.segments[0].checkpoint["journal"]
    known = journal.gateway_records(written.gateway, STATION, life)
    for acked in (found.first - 1, found.first, found.last):
        told = {seq: known[seq] for seq in known if seq <= acked}
        assert journal.verify(found, written.key, acked=acked) == []
        assert journal.verify(found, written.key, told) == []
    for acked in (0, 1, found.first - 2):
        wrong = journal.verify(found, written.key, acked=acked)
        said = f"records {acked + 1} to {found.first - 1} are neither here nor acknowledged"
        assert wrong == [said]
        told = {seq: known[seq] for seq in known if seq <= acked}
        assert not told or journal.verify(found, written.key, told) == [said]


@pytest.mark.parametrize("change", [edited, scratched, removed, reordered])
def test_the_newest_records_need_no_witness_but_the_key(
    written: Written, change: Callable[[Files, str], None]
) -> None:
    """No checkpoint stands behind them; each group carries its place in the chain."""
    files = dict(written.files)
    newest = max(files)
    change(files, newest)
    wrong = journal.verify(journal.read_files(files), written.key)
    assert len(wrong) == 1 and wrong[0].startswith(newest), wrong
    before = groups(written.files[newest])
    changed = [group for group in groups(files[newest]) if group not in before]
    first = min(int.from_bytes(group[4:8], "little") for group in changed)
    assert re.search(rf"records? {first}\b", wrong[0]), (first, wrong)


def test_where_a_journal_was_cut_off_the_gateway_tells(written: Written) -> None:
    files = dict(written.files)
    newest = max(files)
    life = journal.read_files(files).segments[0].checkpoint["journal"]
    known = journal.gateway_records(written.gateway, STATION, life)
    acked = max(known)
    assert acked == journal.read_files(files).last
    for change in (truncated, gone):
        change(files, newest)
        found = journal.read_files(files)
        assert journal.verify(found, written.key) == [], "alone, nothing disproves it"
        for copy, told in ((known, 0), (None, acked)):
            wrong = journal.verify(found, written.key, copy, told)
            assert len(wrong) == 1 and f"{found.last + 1}" in wrong[0] and "gone" in wrong[0]
        assert journal.verify(found, written.key, acked=found.last) == []


def test_records_beside_the_gateway_s_own(written: Written) -> None:
    """Also where somebody has the key and makes the chain fit."""
    found = journal.read_files(written.files)
    life = found.segments[0].checkpoint["journal"]
    known = journal.gateway_records(written.gateway, STATION, life)
    known[7] = (known[7][0], bytes(32))
    wrong = journal.verify(found, written.key, known)
    assert len(wrong) == 1 and wrong[0].startswith("record 7 is not what the gateway has")


def test_another_version_is_said_and_not_guessed(written: Written) -> None:
    files = dict(written.files)
    newest = max(files)
    checkpoint, *rest = groups(files[newest])
    head = json.loads(checkpoint[4:-4]) | {"v": 2, "link": 7}
    files[newest] = b"".join([group(checkpoint, json.dumps(head).encode()), *rest])
    found = journal.read_files(files)
    assert found.wrong == [f"{newest}: version 2; this tool reads version 1"]
    assert journal.verify(found, written.key) == found.wrong


def test_the_example_of_the_format_s_page(tmp_path: Path) -> None:
    """Its bytes by the firmware, by the tool, and its links by hmac."""
    page = (paths.FIRMWARE / "JOURNAL.md").read_text().partition("## An example")[2]
    rows = re.findall(r"^[0-9a-f]{4}  ([0-9a-f ]+)$", page, re.M)
    data = bytes.fromhex("".join(rows))
    found = journal.read_files({"00000001.j": data})
    assert journal.verify(found, b"wattlock") == [] and not found.torn and found.last == 3
    assert [r.fields.get("why") for r in found.records] == ["empty", None, None]
    before = hmac.digest(b"wattlock", b"5f1c09aa", "sha256")
    assert found.segments[0].checkpoint["link"] == before.hex()
    for record in found.records:
        text = before + struct.pack(">Q", record.seq) + record.body
        before = hmac.digest(b"wattlock", text, "sha256")
    assert found.records[0].link and found.records[1].link is None
    assert found.records[2].link == before[:8]

    states: list[Any] = []
    agent = FirmwareJournal(Store({"00000001.j": data}), mac.Mac(b"wattlock"))
    assert agent.open(states.append, lambda record: None, lambda n: bytes(n)) == []
    assert states == [{"boot": 0, "evses": {"1": {"operative": True}}}]
    assert (agent.seq, agent.link) == (3, before)


# --- when it was


def test_moments_are_shown_as_people_read_them() -> None:
    """Dates by `date -u -d @SECONDS`; 100 ppm of the distance to the anchor are added."""
    rows = [
        {"boot": 1, "up_ms": 500, "t": "boot"},
        {"boot": 2, "up_ms": 400, "t": "boot"},
        {"boot": 2, "up_ms": 10_000, "t": "time", "unix_ms": 1_790_000_000_123, "err_ms": 40},
        {"boot": 2, "up_ms": 3_610_000, "t": "status"},
        {"boot": 2, "up_ms": 3_700_000, "t": "time", "unix_ms": 1_790_000_000_000, "err_ms": 20,
         "step": True},
    ]  # fmt: skip
    records = [journal.Record(i, json.dumps(r).encode(), "1.j") for i, r in enumerate(rows, 1)]
    segment = journal.Segment("1.j", {}, records[:4], 0, 0)
    told = journal.Calendar(journal.Journal([segment])).tell
    assert told(1, 500) == "boot 1 +0.500 s"
    assert told(2, 10_000) == "2026-09-21 14:13:20.123 ±0.04 s"
    assert told(2, 9_000) == "2026-09-21 14:13:19.123 ±0.04 s"
    assert told(2, 3_610_000) == "2026-09-21 15:13:20.123 ±0.40 s"
    segment.records.append(records[4])
    told = journal.Calendar(journal.Journal([segment])).tell
    assert told(2, 10_000) == "2026-09-21 13:11:50.000 ±0.39 s"


# --- a live board


def test_a_live_board_is_read_through_mpremote_and_goes_on(
    written: Written, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "flash.bin").write_bytes(written.flash.read_bytes())
    with VirtualBoard(state=tmp_path, heap=HEAP) as board:
        board.wait_console("ready", 30)
        assert journal.main(["export", str(board.link)]) == 0
        exported = capsysbinary.readouterr().out.splitlines()
        board.wait_console("boot ", 30)
        keyed = ["--secrets", str(written.secrets), "--station", STATION]
        assert journal.main(["verify", str(board.link), *keyed]) == 0
        assert b"chain unbroken" in capsysbinary.readouterr().out
        assert board.console().count(" ready") == 3, "it booted, and again after each reading"
        board.power_off()
    records = journal.read_image(tmp_path / "flash.bin").records
    assert exported == [record.body for record in records[: len(exported)]]
    assert [r["boot"] for r in map(json.loads, exported) if r["t"] == "boot"][-1] + 2 == max(
        record.fields["boot"] for record in records
    )


def test_a_changed_live_board_is_found_and_goes_on(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The chain that the board goes on with does not hide what was changed before."""
    files = dict(written.files)
    newest = max(files)
    edited(files, newest)
    (tmp_path / "flash.bin").write_bytes(written.flash.read_bytes())
    image.write_files(tmp_path / "flash.bin", {f"/journal/{newest}": files[newest]})
    first = int.from_bytes(groups(files[newest])[-1][4:8], "little")
    with VirtualBoard(state=tmp_path, heap=HEAP) as board:
        board.wait_console("ready", 30)
        keyed = ["--secrets", str(written.secrets), "--station", STATION]
        assert journal.main(["verify", str(board.link), *keyed]) == 1
        said = capsys.readouterr().out
        assert re.search(rf"^{newest}: records? {first}\b.* not what was written$", said, re.M)
        assert "unbroken" not in said and board.console().count(" ready") == 2


# --- torn tails


@pytest.mark.parametrize("cut", [1, 9, 60])
def test_a_torn_tail_is_cut_by_the_board_and_told_by_both(
    written: Written, tmp_path: Path, cut: int
) -> None:
    """`cut` bytes are missing at the end: the board begins a new segment and says what it cut."""
    state = tmp_path / "board"
    state.mkdir()
    newest = max(written.files)
    torn = written.files[newest][:-cut]
    lost = groups(written.files[newest])[-1]
    (state / "flash.bin").write_bytes(written.flash.read_bytes())
    image.write_files(state / "flash.bin", {f"/journal/{newest}": torn})
    with VirtualBoard(state=state, heap=HEAP) as board:
        board.wait_console("ready", 30)
        board.power_off()
        found = journal.read_image(board.flash)
    left = len(lost) - cut
    assert found.torn == [f"{newest}: torn tail of {left} bytes"]
    assert journal.verify(found, written.key) == []
    said = [r.fields for r in found.records if r.fields.get("what") == "torn_tail"]
    assert [event["bytes"] for event in said] == [left]
    assert len(found.segments) == len(written.files) + 1


@pytest.mark.parametrize("cut", [0, 1, 30, 47])
def test_padding_is_no_record_and_may_be_torn_as_well(written: Written, cut: int) -> None:
    newest = max(written.files)
    padding = group(b"P", bytes(40))
    files = written.files | {newest: written.files[newest] + padding[: len(padding) - cut]}
    found = journal.read_files(files)
    assert journal.verify(found, written.key) == []
    assert found.torn == ([f"{newest}: torn tail of {48 - cut} bytes"] if cut else [])
    assert found.records == journal.read_files(written.files).records


# --- what cannot be read


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "{folder}/nothing.bin"], "nothing.bin"),
        (["show", "{folder}"], "no journal there"),
        (["show", "{folder}/noise.bin"], "noise.bin"),
        (["export", "{folder}/blank.bin"], "blank.bin"),
        (["verify", "{flash}", "--secrets", "{folder}/noise.bin", "--station", "S"], "secrets"),
        (
            ["verify", "{flash}", "--secrets", "{secrets}", "--station", "S", "--gateway",
             "{gateway}"],
            "nothing of S's journal",
        ),
        (
            ["verify", "{flash}", "--secrets", "{secrets}", "--station", "S", "--gateway",
             "{folder}/nothing.db"],
            "unable to open",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(
    written: Written,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)) * 64)
    image.blank(tmp_path / "blank.bin", 16)
    places = {
        "folder": tmp_path,
        "flash": written.flash,
        "secrets": written.secrets,
        "gateway": written.gateway,
    }
    assert journal.main([part.format(**places) for part in arguments]) == 2
    assert said in capsys.readouterr().err
