"""Uplink v1 on the wire: MAC, lines, chain; against a board written from UPLINK.md alone."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_tests.uplink_peer import KEY, Board
from tools.gateway import messages, uplink

KEY_BYTES = bytes.fromhex(KEY)
LINE = st.binary(min_size=1, max_size=300).filter(lambda line: b"\n" not in line)


def test_mac_by_hand() -> None:
    """K = HMAC(station key, "wattlock/1/up/DEMO-1"), MAC over all after the first newline."""
    key = hmac.new(KEY_BYTES, b"wattlock/1/up/DEMO-1", hashlib.sha256).digest()
    rest = b'{"v":1}\n{"t":"time"}'
    raw = hmac.new(key, rest, hashlib.sha256).hexdigest().encode() + b"\n" + rest
    message = uplink.parse(raw, KEY_BYTES, "up", "DEMO-1")
    assert message == uplink.Message(b'{"v":1}', [b'{"t":"time"}'])


@given(header=LINE, records=st.lists(LINE, max_size=8))
def test_round_trip(header: bytes, records: list[bytes]) -> None:
    raw = uplink.build(KEY_BYTES, "up", "DEMO-1", header, records)
    assert uplink.parse(raw, KEY_BYTES, "up", "DEMO-1") == uplink.Message(header, records)


@given(data=st.data(), header=LINE, records=st.lists(LINE, max_size=3))
def test_one_changed_bit_is_refused(
    data: st.DataObject, header: bytes, records: list[bytes]
) -> None:
    raw = bytearray(uplink.build(KEY_BYTES, "up", "DEMO-1", header, records))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(uplink.UplinkError):
        uplink.parse(bytes(raw), KEY_BYTES, "up", "DEMO-1")


@given(st.binary(max_size=5000))
def test_noise_is_refused(raw: bytes) -> None:
    with pytest.raises(uplink.UplinkError):
        uplink.parse(raw, KEY_BYTES, "up", "DEMO-1")


def test_reflected_other_station_other_key() -> None:
    """A message verifies in its direction, for its station, with its key, and nowhere else."""
    raw = uplink.build(KEY_BYTES, "up", "DEMO-1", b"{}")
    for key, direction, station_id in (
        (KEY_BYTES, "down", "DEMO-1"),
        (KEY_BYTES, "up", "DEMO-2"),
        (bytes(32), "up", "DEMO-1"),
    ):
        with pytest.raises(uplink.UplinkError) as refused:
            uplink.parse(raw, key, direction, station_id)  # type: ignore[arg-type]
        assert refused.value.why == "mac"


@pytest.mark.parametrize(
    ("header", "records", "fits"),
    [
        (b"h" * (4096 - 65), [], True),
        (b"h" * (4096 - 64), [], False),
        (b"h", [b"r" * 1024], True),
        (b"h", [b"r" * 1025], False),
        (b"h", [b""], False),
    ],
)
def test_limits(header: bytes, records: list[bytes], fits: bool) -> None:
    """At most 4,096 bytes a message, 1 to 1,024 a record line."""
    rest = b"\n".join([header, *records])
    key = uplink.derive_key(KEY_BYTES, "up", "DEMO-1")
    raw = hmac.new(key, rest, hashlib.sha256).hexdigest().encode() + b"\n" + rest
    if fits:
        uplink.parse(raw, KEY_BYTES, "up", "DEMO-1")
    else:
        with pytest.raises(uplink.UplinkError) as refused:
            uplink.parse(raw, KEY_BYTES, "up", "DEMO-1")
        assert refused.value.why == "size"


@given(
    bodies=st.lists(LINE, min_size=1, max_size=12),
    cut=st.integers(0, 12),
    journal=st.text("0123456789abcdef", min_size=8, max_size=8),
)
def test_chain_agrees_with_the_reference_board(
    bodies: list[bytes], cut: int, journal: str
) -> None:
    """However the records are cut into messages, the chain ends where the board says."""
    board = Board(journal=journal)
    for body in bodies:
        board.write_raw(body)
    key = uplink.derive_key(KEY_BYTES, "chain", "DEMO-1")
    first = uplink.links(key, uplink.first_link(key, journal), 1, bodies[:cut])
    rest = uplink.links(key, first[-1], 1 + len(bodies[:cut]), bodies[cut:])
    assert first + rest[1:] == board.links


def test_reference_board_and_gateway_agree() -> None:
    board = Board()
    board.hello()
    message = uplink.parse(board.message(), KEY_BYTES, "up", "DEMO-1")
    header = messages.UpHeader.model_validate_json(message.header)
    assert (header.seq, header.first, header.boot) == (1, 1, 1)
    assert message.records == board.records


@pytest.mark.parametrize("station_id", ["A", "a-b_C9", "x" * 36])
def test_station_ids(station_id: str) -> None:
    assert uplink.is_station_id(station_id)


@pytest.mark.parametrize("station_id", ["", "x" * 37, "a/b", "a b", "é", "a\n", "+", "#"])
def test_not_station_ids(station_id: str) -> None:
    assert not uplink.is_station_id(station_id)
