"""The Wiegand reader against frames from readers' manuals, bit by bit over the stubs' pins."""

from __future__ import annotations

import importlib
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest

from tools import paths

D0, D1 = 26, 27
STUBBED = ("machine", "wires", "network")
# (bits in the manual's own writing, number)
CIVINTEC_26 = "1 11010100 00011011 10000001 0", "D41B81"  # CN56X manual, 6.4.2
CIVINTEC_34 = "1 10001001 11010100 00011011 10000001 1", "89D41B81"  # 6.4.5
MFPROT_26 = "1 0000 0100 0110 0000 0010 0010 1", "046022"  # MFPROT-LP: first 3 of 04 60 22 12


class Wire:
    """A reader's two outputs: pulses of `us`, each `every_ms`."""

    def __init__(self, wires: Any, bits: int, **more: Any) -> None:
        self.wires = wires
        wires.inputs.update({D0: 1, D1: 1})
        module = importlib.import_module("hal.wiegand")
        self.reader = module.open_reader(
            {"kind": "wiegand", "d0": D0, "d1": D1, "bits": bits} | more, {}
        )
        self.uids: list[str] = []

    def run(self, ms: int) -> None:
        for _ in range(ms // 5):
            self.wires.advance(5)
            self.reader.turn(self.wires.ticks_ms())
            uid = self.reader.read()
            if uid is not None:
                self.uids.append(uid)

    def bit(self, pin: int, every_ms: int = 1) -> None:
        self.wires.inputs[pin] = 0
        self.wires.turn()
        self.wires.inputs[pin] = 1
        self.wires.advance(every_ms)

    def send(self, bits: str, every_ms: int = 1, turns: bool = False) -> None:
        for bit in bits.replace(" ", ""):
            self.bit(D1 if bit == "1" else D0, every_ms)
            if turns:
                self.reader.turn(self.wires.ticks_ms())

    def heard(self) -> list[str]:
        self.run(100)
        uids, self.uids = self.uids, []
        return uids


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(paths.STUBS))
    for name in [n for n in sys.modules if n in STUBBED or n.startswith("hal.")]:
        monkeypatch.delitem(sys.modules, name)
    umqtt = types.SimpleNamespace(MQTTException=Exception, MQTTClient=object)
    monkeypatch.setitem(sys.modules, "umqtt", types.SimpleNamespace(simple=umqtt))
    module = importlib.import_module("wires")
    module.clear()
    for name, function in module.time_functions().items():
        monkeypatch.setattr(time, name, function, raising=False)
    yield module
    for name in [n for n in sys.modules if n in STUBBED or n.startswith("hal.")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("bits", "frame"), [(26, CIVINTEC_26), (26, MFPROT_26), (34, CIVINTEC_34)]
)
@pytest.mark.parametrize("every_ms", [1, 2, 20])
def test_frames_of_the_manuals(wires: Any, bits: int, frame: Any, every_ms: int) -> None:
    wire = Wire(wires, bits)
    wire.send(frame[0], every_ms, turns=True)
    assert wire.heard() == [frame[1]]


def test_bytes_turned_round(wires: Any) -> None:
    """MFPROT-LP: the reversed byte option sends 12 22 60 04 for 04 60 22 12."""
    data = "0001 0010 0010 0010 0110 0000 0000 0100"
    even = "0" if data[:19].count("1") % 2 == 0 else "1"
    odd = "1" if data[20:].count("1") % 2 == 0 else "0"
    wire = Wire(wires, 34, reversed=True)
    wire.send(even + data + odd)
    assert wire.heard() == ["04602212"]


@pytest.mark.parametrize(("bits", "frame"), [(26, CIVINTEC_26[0]), (34, CIVINTEC_34[0])])
def test_any_wrong_bit_is_no_card(wires: Any, bits: int, frame: str) -> None:
    wire = Wire(wires, bits)
    good = frame.replace(" ", "")
    for i in range(bits):
        wire.send(good[:i] + str(1 - int(good[i])) + good[i + 1 :])
        assert wire.heard() == [], i
    wire.send(good)
    assert len(wire.heard()) == 1


def test_frames_of_another_length(wires: Any) -> None:
    """A key of a keypad (4 or 8 bits), a frame that lost bits, two that ran into each other."""
    wire = Wire(wires, 34)
    good = CIVINTEC_34[0].replace(" ", "")
    for bits in ("1011", "10110100", good[:-1], good[8:], good + "1", good + good, good * 9):
        wire.send(bits)
        assert wire.heard() == [], len(bits)
    wire.send(CIVINTEC_26[0])
    assert wire.heard() == [], "26 bits are no part of 34: the length is the board's"
    wire.send(good)
    assert wire.heard() == [CIVINTEC_34[1]]


def test_a_card_that_stays_is_told_once(wires: Any) -> None:
    wire = Wire(wires, 26)
    for _ in range(6):  # some readers repeat it each second
        wire.send(CIVINTEC_26[0])
        wire.run(1000)
    assert wire.heard() == [CIVINTEC_26[1]]
    wire.send(MFPROT_26[0])
    assert wire.heard() == [MFPROT_26[1]], "another one at once"
    wire.run(2500)
    wire.send(MFPROT_26[0])
    assert wire.heard() == [MFPROT_26[1]], "and after it was away"


def test_noise_before_a_frame_ends_with_its_gap(wires: Any) -> None:
    wire = Wire(wires, 26)
    wire.bit(D0)
    wire.bit(D1)
    wire.run(60)
    wire.send(CIVINTEC_26[0])
    assert wire.heard() == [CIVINTEC_26[1]]


def test_over_the_wrap_of_ticks(wires: Any) -> None:
    wires.state["ticks"] = 2**30 - 13
    wire = Wire(wires, 26)
    wire.send(CIVINTEC_26[0])
    assert wire.heard() == [CIVINTEC_26[1]]


@pytest.mark.parametrize("days", [5, 7, 12, 13])
def test_the_same_card_after_days(wires: Any, days: int) -> None:
    """Ticks tell spans of six days, and begin anew after twelve."""
    wire = Wire(wires, 26)
    wire.send(CIVINTEC_26[0])
    assert wire.heard() == [CIVINTEC_26[1]]
    for _ in range(days * 24):
        wires.advance(3600_000)
        wire.reader.turn(wires.ticks_ms())
    wire.send(CIVINTEC_26[0])
    assert wire.heard() == [CIVINTEC_26[1]]


def test_nothing_is_told_before_the_frame_has_ended(wires: Any) -> None:
    wire = Wire(wires, 26)
    wire.send(CIVINTEC_26[0])
    wire.run(20)
    assert wire.uids == []
    wire.run(20)
    assert wire.uids == [CIVINTEC_26[1]]


# the port: board.json chooses


def test_the_board_loads_the_reader_that_it_names_and_no_other(wires: Any) -> None:
    board = importlib.import_module("hal.board").Board
    wires.uarts[2] = wires.Script()
    named = {"kind": "wiegand", "d0": D0, "d1": D1, "bits": 34}
    assert type(board._reader(object(), named, {"uarts": {}})).__name__ == "Wiegand"
    assert "hal.pn532" not in sys.modules
    pn532 = board._reader(
        object(), {"kind": "pn532", "uart": 2}, {"uarts": {"2": {"tx": 1, "rx": 3}}}
    )
    for reader in (pn532, board._reader(object(), named, {"uarts": {}})):
        assert reader.read() is None and isinstance(reader.ok, bool)
        assert callable(reader.turn)


def test_a_reader_that_is_not_there_is_named(wires: Any) -> None:
    board = importlib.import_module("hal.board").Board
    with pytest.raises(Exception, match=r"board\.json\.rfid\.kind: .*hal/mfrc522\.py"):
        board._reader(object(), {"kind": "mfrc522"}, {"uarts": {}})
