"""Signed records at the gateway: pieces -> the CDR's signed_data, or why there are none.

The records are the maker's published ones (data/ocmf.json); the CDR is checked by the eMSP's
models and its signatures by OpenSSL, as an eMSP would.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from host_tests.gateway_kit import board_token
from host_tests.test_gateway_projection import cdrs, session
from host_tests.test_gateway_southbound import Bare
from host_tests.uplink_peer import Board
from tools.gateway.signatures import WAIT_MS
from tools.gateway.store import AwaitedSignature
from tools.meter import verify

PUBLISHED = json.loads((Path(__file__).parent / "data" / "ocmf.json").read_text())
START, END = (p["record"].encode() for p in PUBLISHED[:2])
KEY = bytes.fromhex(PUBLISHED[0]["key"])


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(tmp_path)


def pieces(board: Board, nature: str, record: bytes, size: int = 480, drop: int = 0) -> None:
    """What the board writes of one record; `drop`: the number of a piece that is lost."""
    parts = [record[i : i + size] for i in range(0, len(record), size)]
    for number, part in enumerate(parts, 1):
        if number == drop:
            continue
        last: dict[str, Any] = {}
        if number == len(parts):
            last = {"of": number, "public_key": base64.b64encode(KEY).decode()}
        board.write(
            "signed", evse=1, session_id="S1", nature=nature, piece=number,
            data=base64.b64encode(part).decode(), **last,
        )  # fmt: skip


def failed(board: Board, nature: str, why: str) -> None:
    board.write("signed", evse=1, session_id="S1", nature=nature, failed=why)


def charged(bare: Bare) -> Board:
    """A session that began signed and has stopped."""
    board = Board()
    board.hello()
    board.start("S1", board_token(), signs=True)
    pieces(board, "start", START)
    board.period("S1", 7000, 1_800_000)
    board.stop("S1")
    bare.all(board)
    return board


def test_the_meter_s_bytes_reach_the_cdr(bare: Bare, tmp_path: Path) -> None:
    board = charged(bare)
    assert session(bare)["status"] == "COMPLETED", "the session waits for nothing"
    assert cdrs(bare) == [], "its CDR does: it cannot be changed later"
    pieces(board, "end", END)
    bare.all(board)
    (cdr,) = cdrs(bare)
    signed = cdr["signed_data"]
    assert signed["encoding_method"] == "OCMF" and "encoding_method_version" not in signed
    assert base64.b64decode(signed["public_key"]) == KEY
    start, end = signed["signed_values"]
    assert (start["nature"], end["nature"]) == ("Start", "End")
    for value, record in ((start, START), (end, END)):
        assert base64.b64decode(value["signed_data"]) == record
        assert value["plain_data"].encode() == record.split(b"|")[1]
    file = tmp_path / "cdr.json"
    file.write_text(json.dumps(cdr, default=float))
    verdicts = [verify.verdict(f.text, f.key) for f in verify.records(file.read_bytes())]
    assert [word for word, _ in verdicts] == ["valid", "valid"]
    assert cdr["remark"] == "ended by: remote" and cdr["total_energy"] == 7
    assert bare.rows(AwaitedSignature) == []


def test_one_record_of_start_and_end_is_the_end(bare: Bare) -> None:
    board = Board()
    board.hello()
    board.start("S1", board_token(), signs=True)
    board.period("S1", 7000, 1_800_000)
    record = next(p for p in PUBLISHED if "EM580" in p["source"])["record"].encode()
    pieces(board, "end", record)
    board.stop("S1")
    bare.all(board)
    (cdr,) = cdrs(bare)
    (value,) = cdr["signed_data"]["signed_values"]
    assert value["nature"] == "End" and base64.b64decode(value["signed_data"]) == record


def test_what_the_board_says_is_missing_is_stated(bare: Bare) -> None:
    board = charged(bare)
    failed(board, "end", "snapshot status 3")
    bare.all(board)
    (cdr,) = cdrs(bare)
    assert cdr["remark"] == "ended by: remote; no signed end: snapshot status 3"
    assert [v["nature"] for v in cdr["signed_data"]["signed_values"]] == ["Start"]


def test_nothing_signed_at_all_is_a_cdr_without(bare: Bare) -> None:
    board = Board()
    board.hello()
    board.start("S1", board_token(), signs=True)
    failed(board, "start", "late")
    board.period("S1", 7000, 1_800_000)
    failed(board, "end", "no transaction")
    board.stop("S1")
    bare.all(board)
    (cdr,) = cdrs(bare)
    assert "signed_data" not in cdr
    missing = "; no signed start: late; no signed end: no transaction"
    assert cdr["remark"] == "ended by: remote" + missing


def test_a_new_attempt_counts_from_one(bare: Bare) -> None:
    board = charged(bare)
    board.write("signed", evse=1, session_id="S1", nature="end", piece=1, data="T0NNRnx7")
    pieces(board, "end", END)
    bare.all(board)
    (cdr,) = cdrs(bare)
    assert base64.b64decode(cdr["signed_data"]["signed_values"][1]["signed_data"]) == END


@pytest.mark.parametrize(
    ("record", "size", "drop", "why"),
    [
        (END, 240, 2, "pieces are missing"),
        (END, 240, 1, "pieces are missing"),
        (b"something else", 480, 0, "not an OCMF record"),
        (b"OCMF|" + b"x" * 3800 + b"|{}", 480, 0, "longer than OCPI's 5000 characters"),
    ],
)
def test_what_cannot_be_handed_over_is_stated(
    bare: Bare, record: bytes, size: int, drop: int, why: str
) -> None:
    board = charged(bare)
    pieces(board, "end", record, size, drop)
    bare.all(board)
    (cdr,) = cdrs(bare)
    assert cdr["remark"] == f"ended by: remote; no signed end: {why}"
    assert len(cdr["signed_data"]["signed_values"]) == 1


def test_a_board_that_says_nothing_holds_up_no_invoice(bare: Bare) -> None:
    board = charged(bare)
    bare.clock.advance(WAIT_MS - 1)
    bare.south.tick()
    assert cdrs(bare) == []
    bare.clock.advance(1)
    bare.south.tick()
    (cdr,) = cdrs(bare)
    assert cdr["remark"].endswith("; no signed end: the board did not hand it over in time")
    assert bare.rows(AwaitedSignature) == []
    # what comes later is kept, and the CDR stays as it was sent
    pieces(board, "end", END)
    bare.all(board)
    bare.south.tick()
    assert cdrs(bare) == [cdr]


def test_a_replay_makes_no_second_cdr(bare: Bare) -> None:
    board = charged(bare)
    pieces(board, "end", END)
    bare.all(board)
    (cdr,) = cdrs(bare)
    board.acked = 0
    bare.all(board)
    assert cdrs(bare) == [cdr]


def test_a_session_of_a_meter_that_does_not_sign_waits_for_nothing(bare: Bare) -> None:
    board = Board()
    board.hello()
    board.start("S1", board_token())
    board.period("S1", 7000, 1_800_000)
    board.stop("S1")
    bare.all(board)
    (cdr,) = cdrs(bare)
    assert "signed_data" not in cdr and cdr["remark"] == "ended by: remote"
