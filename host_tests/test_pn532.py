"""The PN532 reader against frames from its manual (NXP UM0701-02), in virtual time."""

import pytest
from hal import pn532

ACK = bytes.fromhex("0000FF00FF00")
SAM = bytes.fromhex("0000FF05FBD4140114010200")
MAX_RETRIES = bytes.fromhex("0000FF06FAD43205FF0102F300")
LIST = bytes.fromhex("0000FF04FCD44A0100E100")
SAM_DONE = bytes.fromhex("0000FF02FED5151600")
RF_DONE = bytes.fromhex("0000FF02FED533F800")
NO_CARD = bytes.fromhex("0000FF03FDD54B00E000")
SYNTAX_ERROR = bytes.fromhex("0000FF01FF7F8100")
# one target: Tg 1, SENS_RES 0004, SEL_RES 08, uid of four bytes
CARD_4 = bytes.fromhex("0000FF0CF4D54B010100040804CAFE1234C000")
CARD_7 = bytes.fromhex("0000FF0FF1D54B01010044000704A1B2C3D4E5F6CA00")
CARD_10 = bytes.fromhex("0000FF12EED54B01010084000A04A1B2C3D4E5F60718ABBD00")


def sound(frame: bytes) -> bool:
    """Both checksums, by the manual's rule (6.2.1.1): LEN + LCS = 0, TFI + data + DCS = 0."""
    size = frame[3]
    return (size + frame[4]) & 0xFF == 0 and sum(frame[5 : 6 + size]) & 0xFF == 0


@pytest.mark.parametrize(
    "frame",
    [SAM, MAX_RETRIES, LIST, SAM_DONE, RF_DONE, NO_CARD, SYNTAX_ERROR, CARD_4, CARD_7, CARD_10],
)
def test_the_scripted_frames_are_sound(frame):
    assert sound(frame)


def test_frames_as_in_the_manual():
    assert pn532.frame(b"\x02") == bytes.fromhex("0000FF02FED4022A00")  # GetFirmwareVersion
    assert pn532.frame(b"\x4a\x01\x00") == LIST


class Reader:
    """A PN532 on a wire: answers what it is told to, and fails on any unscripted command."""

    def __init__(self) -> None:
        self.now = 0
        self.pending: list[tuple[int, bytes]] = []
        self.card: bytes | None = None
        self.dead = False
        self.heard: list[bytes] = []
        self.garble = lambda answer: answer

    def write(self, data):
        data = bytes(data)
        if data.startswith(b"\x55\x55"):
            data = data[2:].lstrip(b"\0")
            data = b"\0\0" + data
        self.heard.append(data)
        if self.dead:
            return
        answers = {SAM: SAM_DONE, MAX_RETRIES: RF_DONE, LIST: self.card or NO_CARD}
        self.pending.append((self.now + 1, ACK))
        self.pending.append((self.now + 25, self.garble(answers[data])))

    def _here(self) -> bytes:
        return b"".join(data for at, data in self.pending if at <= self.now)

    def any(self):
        return len(self._here())

    def readinto(self, buffer):
        data = self._here()[: len(buffer)]
        assert data, "reads only what is there"
        buffer[: len(data)] = data
        self.pending = [(at, d) for at, d in self.pending if at > self.now]
        return len(data)


@pytest.fixture
def wire():
    return Reader()


@pytest.fixture
def reader(wire):
    return pn532.Pn532(wire, lambda a, b: a - b)


def run(wire, reader, ms) -> list[str]:
    uids = []
    for _ in range(ms // 10):
        wire.now += 10
        reader.turn(wire.now)
        uid = reader.read()
        if uid is not None:
            uids.append(uid)
    return uids


def test_it_sets_the_reader_up_and_then_asks_for_cards(wire, reader):
    assert not reader.ok
    assert run(wire, reader, 1000) == []
    assert reader.ok
    assert wire.heard[:3] == [SAM, MAX_RETRIES, LIST]
    assert set(wire.heard[2:]) == {LIST}
    assert 3 <= len(wire.heard[2:]) <= 7, "every 150 ms, and the time of an answer"


@pytest.mark.parametrize(
    ("card", "uid"),
    [(CARD_4, "CAFE1234"), (CARD_7, "04A1B2C3D4E5F6"), (CARD_10, "04A1B2C3D4E5F60718AB")],
)
def test_a_card_is_told_once(wire, reader, card, uid):
    run(wire, reader, 500)
    wire.card = card
    assert run(wire, reader, 5000) == [uid]


def test_the_same_card_again_only_after_it_was_away_for_a_second(wire, reader):
    wire.card = CARD_4
    assert run(wire, reader, 1000) == ["CAFE1234"]
    for away_ms, expected in ((300, []), (700, []), (1500, ["CAFE1234"])):
        wire.card = None
        assert run(wire, reader, away_ms) == []
        wire.card = CARD_4
        assert run(wire, reader, 600) == expected


def test_another_card_is_told_at_once(wire, reader):
    wire.card = CARD_4
    run(wire, reader, 1000)
    wire.card = CARD_7
    assert run(wire, reader, 400) == ["04A1B2C3D4E5F6"]


def test_a_lost_reader_is_seen_and_comes_back_without_a_second_card(wire, reader):
    wire.card = CARD_4
    assert run(wire, reader, 1000) == ["CAFE1234"]
    wire.dead = True
    assert run(wire, reader, 2000) == []
    assert not reader.ok
    wire.dead = False
    assert run(wire, reader, 4000) == [], "the card never left"
    assert reader.ok


@pytest.mark.parametrize(
    "garble",
    [
        lambda answer: answer[:-2] + b"\x00\x00",  # DCS
        lambda answer: answer[:4] + b"\x00" + answer[5:],  # LCS
        lambda answer: answer[:5],
        lambda answer: b"",
        lambda answer: SYNTAX_ERROR,
        lambda answer: SAM_DONE,  # the answer to another command
        lambda answer: b"\x00" * 70,
        lambda answer: answer[:3] + b"\xff\x01" + answer[5:],
    ],
    ids=["dcs", "lcs", "short", "none", "error", "other", "long", "length"],
)
def test_a_bad_frame_is_no_card(wire, reader, garble):
    run(wire, reader, 500)
    assert reader.ok
    wire.card = CARD_4
    wire.garble = garble
    assert run(wire, reader, 3000) == []
    assert not reader.ok
    wire.garble = lambda answer: answer
    assert run(wire, reader, 3000) == ["CAFE1234"]


def test_one_bad_frame_is_forgiven(wire, reader):
    run(wire, reader, 500)
    wire.dead = True
    run(wire, reader, 200)
    wire.dead = False
    run(wire, reader, 1000)
    assert reader.ok


def test_noise_before_a_command_is_discarded(wire, reader):
    run(wire, reader, 500)
    wire.card = CARD_4
    wire.pending.insert(0, (wire.now, b"\xaa\x55"))
    assert run(wire, reader, 1000) == ["CAFE1234"]
