"""The journal tool on what a real board wrote, and on what somebody changed afterwards.

The board runs the firmware with small segments (1 KiB instead of 8), so that a few sessions fill
several; everything else is as it is deployed. Two decoders read the same flash, the tool's and the
firmware's own, and the gateway's copy is the third witness.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
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
    assert "\nSEGMENT = 8192\n" in source
    small = folder / "journal.py"
    small.write_text(source.replace("\nSEGMENT = 8192\n", "\nSEGMENT = 1024\n"))
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
    return {Path(n).name: data for n, data in image.read_files(flash, "/journal").items()}


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

    class Store:
        names = staticmethod(lambda: list(written.files))
        size = staticmethod(lambda name: len(written.files[name]))
        read = staticmethod(lambda name, at, n: written.files[name][at : at + n])

    replayed: list[dict[str, Any]] = []
    station_key = bytes.fromhex(json.loads(written.secrets.read_text())["key"])
    agent = FirmwareJournal(Store(), mac.purpose(station_key, "chain", STATION))
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


def senseless(files: Files, name: str) -> None:
    checkpoint, *rest = groups(files[name])
    files[name] = b"".join([group(checkpoint, b'{"seq":"one"}'), *rest])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edited, "not those that were written"),
        (removed, "not those that were written|follows|missing"),
        (reordered, "not those that were written|follows"),
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
    """CRCs are made to fit, so that only the chain can tell."""
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
    """What was acknowledged goes when its room is needed: the chain starts at a checkpoint."""
    files = dict(written.files)
    del files[min(files)]
    assert journal.verify(journal.read_files(files), written.key) == []


@pytest.mark.parametrize("change", [edited, truncated])
def test_the_newest_records_are_held_against_the_gateway(
    written: Written, change: Callable[[Files, str], None]
) -> None:
    files = dict(written.files)
    newest = max(files)
    life = journal.read_files(files).segments[0].checkpoint["journal"]
    known = journal.gateway_records(written.gateway, STATION, life)
    assert max(known) == journal.read_files(files).records[-1].seq
    change(files, newest)
    found = journal.read_files(files)
    assert journal.verify(found, written.key) == [], "alone, nothing disproves it"
    wrong = journal.verify(found, written.key, known)
    assert len(wrong) == 1 and "gateway" in wrong[0]


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
