"""Questions by UDP: the resolver and the time server, against packets written from the RFCs."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hal import names, sntp
from wattlock.errors import LinkError

from host_tests.test_hal_mqtt import ticks_diff

TO = ("192.0.2.53", 53)


class Udp:
    """The other end: what was sent, and what to give."""

    sent: list[tuple[bytes, Any]]
    replies: list[bytes]

    def __init__(self, *_: Any) -> None:
        self.sent, self.replies = [], []
        Udp.last = self

    def setblocking(self, yes: bool) -> None:
        assert not yes

    def sendto(self, data: bytes, to: Any) -> None:
        self.sent.append((bytes(data), to))

    def recv(self, n: int) -> bytes:
        if self.replies:
            return self.replies.pop(0)
        raise OSError(errno.EAGAIN, "nothing yet")

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(names.socket, "socket", Udp)
    return [0]


def lookup(now: list[int], host: str = "gw.example") -> Any:
    return names.Lookup(
        host, TO[0], lambda n: b"\x12\x34"[:n], lambda t: ticks_diff(now[0], t), now[0]
    )


# RFC 1035, section 4.1: header, question; an alias first (CNAME), then the address
QUESTION = b"\x02gw\x07example\0\0\1\0\1"
CNAME = b"\xc0\x0c\0\5\0\1\0\0\0\x3c\0\4\1a\xc0\x0f"
ADDRESS = b"\xc0\x2c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\7"


def test_a_name_is_asked_for_and_found_behind_an_alias(clock: list[int]) -> None:
    one = lookup(clock)
    assert one.turn(0) is None
    udp = Udp.last
    assert udp.sent == [(b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + QUESTION, TO)]
    udp.replies = [
        b"\x99\x99" + bytes(40),
        b"\x12\x34\x81\x80\0\1\0\2\0\0\0\0" + QUESTION + CNAME + ADDRESS,
    ]
    assert one.turn(0) is None  # somebody else's answer
    assert one.turn(0) == "192.0.2.7" and udp.closed


@pytest.mark.parametrize("reply", [
    b"\x12\x34\x81\x83\0\1\0\0\0\0\0\0" + QUESTION,  # no such name
    b"\x12\x34\x81\x80\0\1\0\1\0\0\0\0" + QUESTION + ADDRESS[:9],  # cut off
    b"\x12\x34\x81",
])  # fmt: skip
def test_no_address(clock: list[int], reply: bytes) -> None:
    one = lookup(clock)
    one.turn(0)
    Udp.last.replies = [reply]
    with pytest.raises(OSError, match="dns_no_name"):
        one.turn(0)


def test_silence_is_asked_again_each_second_and_ends(clock: list[int]) -> None:
    one = lookup(clock)
    with pytest.raises(OSError, match="dns_silent"):
        for clock[0] in range(0, 10000, 10):
            one.turn(clock[0])
    assert 8000 < clock[0] < 8100 and len(Udp.last.sent) == 9 and Udp.last.closed


@pytest.mark.parametrize("days", [5, 7, 12])
def test_a_question_from_before_days_without_network_ends(clock: list[int], days: int) -> None:
    """Ticks tell spans of six days, and begin anew after twelve."""
    one = lookup(clock)
    one.turn(0)
    clock[0] = days * 86_400_000
    with pytest.raises(OSError, match="dns_silent"):
        one.turn(clock[0])


def test_an_address_is_its_own(clock: list[int]) -> None:
    assert lookup(clock, "192.0.2.7").turn(0) == "192.0.2.7"


class Net:
    def __init__(self, dns: str = TO[0]) -> None:
        self._dns = dns

    def dns(self) -> str:
        return self._dns


class Asker:
    """A link, as `find` sees it."""

    def __init__(self, found: str | None = None) -> None:
        self.lookup: Any = None
        self.found = found

    def find(self, now: list[int], host: str = "gw.example", net: Any = None) -> str | None:
        return names.find(
            self, host, net or Net(), lambda n: b"\x12\x34"[:n], lambda t: now[0] - t, now[0]
        )


FOUND = b"\x12\x34\x81\x80\0\1\0\2\0\0\0\0" + QUESTION + CNAME + ADDRESS
NONE = b"\x12\x34\x81\x83\0\1\0\0\0\0\0\0" + QUESTION


@pytest.mark.parametrize(("reply", "word"), [(None, "dns_silent"), (NONE, "dns_no_name")])
def test_an_address_found_before_stays_and_without_one_the_reason_has_a_name(
    clock: list[int], reply: bytes | None, word: str
) -> None:
    for asker in (Asker(), Asker("192.0.2.9")):
        clock[0] = 0
        assert asker.find(clock) is None
        Udp.last.replies = [] if reply is None else [reply]
        clock[0] = 9000 if reply is None else 10
        if asker.found is None:
            with pytest.raises(LinkError, match="gw.example") as caught:
                asker.find(clock)
            assert caught.value.args[1] == word
        else:
            assert asker.find(clock) == "192.0.2.9"
        assert asker.lookup is None, "the next try asks anew"


def test_a_slow_name_server_is_not_waited_for(clock: list[int]) -> None:
    """Seven seconds late: each turn until then is one look that returns at once."""
    asker = Asker()
    for clock[0] in range(0, 7000, 5):
        assert asker.find(clock) is None
    Udp.last.replies = [FOUND]
    assert asker.find(clock) == "192.0.2.7" == asker.found


def test_a_network_that_names_no_server(clock: list[int]) -> None:
    with pytest.raises(LinkError) as caught:
        Asker().find(clock, net=Net("0.0.0.0"))
    assert caught.value.args[1] == "dns_no_server"
    assert Asker("192.0.2.9").find(clock, net=Net("0.0.0.0")) == "192.0.2.9"


def test_a_name_in_local_is_asked_of_everybody(clock: list[int]) -> None:
    """RFC 6762: to 224.0.0.251, port 5353; and no name server is needed."""
    asker = Asker()
    assert asker.find(clock, "gw.local", Net("0.0.0.0")) is None
    ((packet, to),) = Udp.last.sent
    assert to == ("224.0.0.251", 5353) and packet.endswith(b"\x02gw\x05local\0\0\1\0\1")


STAMP = b"\1\2\3\4\5\6\7\x08"


def answer(
    mode: int = 4, stratum: int = 2, stamp: bytes = STAMP, seconds: int = 0xEC000000
) -> bytes:
    head = bytes([0x20 | mode, stratum]) + bytes(22)
    return head + stamp + bytes(8) + seconds.to_bytes(4, "big") + bytes(4)


@pytest.mark.parametrize(("reply", "unix_s"), [
    (answer(), 0xEC000000 - 2208988800),  # 2025-06-23, RFC 4330: seconds since 1900
    (answer(seconds=5), 2085978496 + 5),  # era 1 begins on 2036-02-07 at 06:28:16 (RFC 4330, 3)
    (answer(mode=3), None), (answer(stratum=0), None), (answer(stratum=16), None),
    (answer(stamp=bytes(8)), None), (answer()[:47], None),
])  # fmt: skip
def test_a_time_server(clock: list[int], reply: bytes, unix_s: int | None) -> None:
    one = sntp.Sntp("192.0.2.1", None, lambda n: STAMP[:n], lambda t: clock[0] - t, 0)
    assert one.turn(0) is None
    ((packet, to),) = Udp.last.sent
    assert len(packet) == 48 and packet[0] == 0x23 and packet[40:] == STAMP and to[1] == 123
    Udp.last.replies = [reply]
    assert one.turn(0) == (None if unix_s is None else unix_s * 1000)
