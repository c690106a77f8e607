"""Outputs, clock, watchdog, Wi-Fi and Ethernet over the stubs of the ESP32."""

from __future__ import annotations

import calendar
import importlib
import itertools
import sys
import time
import types
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import build, paths

MODULES = ("machine", "network", "_lan", "wires")
HAL = (
    *("hal", "hal.indicator", "hal.outputs", "hal.rtc", "hal.wallclock", "hal.watchdog"),
    *("hal.wifi", "hal.wired"),
)
EPOCH_2000_S = calendar.timegm((2000, 1, 1, 0, 0, 0))


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(paths.STUBS))
    for name in (*MODULES, *HAL):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("wires")
    module.clear()
    yield module
    for name in (*MODULES, *HAL):
        sys.modules.pop(name, None)


# Outputs ------------------------------------------------------------------------------------


def outputs(spec: dict[str, Any]) -> Any:
    return importlib.import_module("hal.outputs").Outputs(spec)


def row(pin: int, active: int, **more: Any) -> dict[str, Any]:
    return {"pin": pin, "active": active} | more


@pytest.mark.parametrize("active", [0, 1])
def test_levels(wires: Any, active: int) -> None:
    pins = outputs({
        "contactor": row(18, active), "lock": row(19, active), "led": row(21, active),
        "plugged": row(32, active), "ready": row(33, active), "fault": row(36, active),
        "contactor_feedback": row(34, active), "lock_feedback": row(35, active),
    })  # fmt: skip
    off = 1 - active
    assert wires.outputs[18] == off and wires.modes[18] == 3
    assert wires.log[0] == ("pin", 18, off)  # open from its first moment as an output
    assert 19 not in wires.modes  # nobody knows yet whether it must hold
    for act, pin in ((pins.contactor, 18), (pins.lock, 19), (pins.led, 21)):
        for on in (True, False, True):
            act(on)
            assert wires.outputs[pin] == (active if on else off)
    pins.safe()
    assert wires.outputs[18] == off and wires.outputs[19] == active  # the lock stays as it is
    for see, pin in (
        (pins.plugged, 32),
        (pins.ready, 33),
        (pins.fault, 36),
        (pins.closed, 34),
        (pins.locked, 35),
    ):
        for level in (0, 1):
            wires.inputs[pin] = level
            assert see() is (level == active)


def test_a_board_with_a_contactor_only(wires: Any) -> None:
    pins = outputs({"contactor": {"pin": 18}})
    pins.lock(True)
    pins.led(True)
    assert (pins.plugged(), pins.ready(), pins.fault()) == (True, True, False)
    assert pins.closed() is None and pins.locked() is None
    assert set(wires.modes) == {18}


@pytest.mark.parametrize("active", [0, 1])
def test_three_colours_on_three_pins(wires: Any, active: int) -> None:
    lamp = {name: row(pin, active) for name, pin in (("red", 21), ("green", 22), ("blue", 23))}
    pins = outputs({"contactor": row(18, 1), "rgb": lamp})
    off = 1 - active
    assert [wires.level(pin) for pin in (21, 22, 23)] == [off] * 3
    assert [wires.modes[pin] for pin in (21, 22, 23)] == [3] * 3
    for colour in (*range(8), *reversed(range(8))):
        pins.led(colour)
        lit = [wires.level(pin) == active for pin in (21, 22, 23)]
        assert lit == [bool(colour & 4), bool(colour & 2), bool(colour & 1)]


def test_a_neopixel_is_written_when_it_changes(
    wires: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, ...]] = []

    class NeoPixel(dict):  # type: ignore[type-arg]
        def __init__(self, pin: Any, count: int) -> None:
            assert (pin.id, count) == (48, 1)

        def write(self) -> None:
            written.append(self[0])

    monkeypatch.setitem(sys.modules, "neopixel", types.SimpleNamespace(NeoPixel=NeoPixel))
    pins = outputs({"contactor": row(18, 1), "neopixel": {"pin": 48}})
    assert written == [(0, 0, 0)]  # what it showed before a reset
    for colour in (2, 2, 2, 0, 0, 5, 5):
        pins.led(colour)
    on = max(written[1])
    assert written[1:] == [(0, on, 0), (0, 0, 0), (on, 0, on)] and 0 < on < 256


# Ticks, uptime and the RTC ------------------------------------------------------------------


def wallclock(wires: Any, monkeypatch: pytest.MonkeyPatch, epoch: int) -> Any:
    """hal.wallclock on a port whose epoch is 1970 or 2000."""
    module = importlib.import_module("hal.wallclock")
    shift = EPOCH_2000_S if epoch == 2000 else 0
    board_time = types.SimpleNamespace(
        gmtime=lambda s: tuple(time.gmtime(s + shift))[:8],
        time=lambda: wires.unix_ms() // 1000 - shift,
        ticks_ms=wires.ticks_ms,
        ticks_diff=wires.ticks_diff,
    )
    monkeypatch.setattr(module, "time", board_time)
    return module


def test_uptime_over_the_wrap_of_ticks(wires: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wires.state["ticks"] = 2**30 - 5000
    clock = wallclock(wires, monkeypatch, 2000)
    up = clock.Uptime()
    total = 0
    for ms in (0, 1, 4998, 1, 1, 10**6, 2**29 - 1, 2**29 - 1, 2**29 - 1, 7):
        wires.state["ticks"] += ms
        total += ms
        assert up.ms() == total
        assert up.ms() == total


@given(st.integers(0, 2**30 - 1), st.integers(0, 2**29 - 1))
def test_since(start: int, span: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(paths.STUBS))
        for name in (*MODULES, *HAL):
            monkeypatch.delitem(sys.modules, name, raising=False)
        wires = importlib.import_module("wires")
        wires.clear()
        clock = wallclock(wires, monkeypatch, 2000)
        wires.state["ticks"] = start
        before = wires.ticks_ms()
        wires.state["ticks"] += span
        assert clock.since(before) == span
        for name in (*MODULES, *HAL):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("epoch", [1970, 2000])
@pytest.mark.parametrize("unix_ms", [1790000000000, 1790000000999, 1835395199999])  # leap day 2028
def test_time_outlives_a_reset(
    wires: Any, monkeypatch: pytest.MonkeyPatch, epoch: int, unix_ms: int
) -> None:
    clock = wallclock(wires, monkeypatch, epoch)
    assert clock.recall() is None  # nothing was ever kept
    clock.keep(unix_ms)
    assert abs(wires.unix_ms() - unix_ms) < 1000
    for ms in (1000, 60000, 86400000, 30 * 86400000):
        wires.advance(ms)
        true = unix_ms + ms
        unix_ms = true
        got, err = clock.recall()
        assert abs(got - true) <= err
        assert err <= 2000 + 32 * 86400000 // 1000


def test_a_crumb_that_is_damaged_is_none(wires: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = wallclock(wires, monkeypatch, 2000)
    clock.keep(1790000000000)
    wires.advance(5000)
    assert clock.recall() is not None
    crumb = wires.memory()
    for i in range(len(crumb)):
        bad = bytearray(crumb)
        bad[i] ^= 1
        wires.set_memory(bad)
        assert clock.recall() is None
    for bad in (b"", crumb[:-1]):  # what follows it is the pulse counts
        wires.set_memory(bad)
        assert clock.recall() is None


def test_an_rtc_that_went_back_is_not_believed(
    wires: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = wallclock(wires, monkeypatch, 2000)
    clock.keep(1790000000000)
    wires.set_unix_ms(EPOCH_2000_S * 1000 + 5000)  # it lost its power, and the memory did not
    assert clock.recall() is None


@pytest.mark.parametrize("epoch", [1970, 2000])
def test_a_time_that_nobody_vouches_for_is_shown_and_not_recalled(
    wires: Any, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """A time server serves certificates: the RTC shows its time, no boot takes it for the time."""
    clock = wallclock(wires, monkeypatch, epoch)
    clock.show(1790000000000)
    assert abs(clock.shown_ms() - 1790000000000) < 1000 and clock.recall() is None
    clock.keep(1790000000000)
    assert clock.recall() is not None
    clock.show(1890000000000)  # three years ahead: what was kept before does not vouch for it
    wires.advance(5000)
    assert clock.recall() is None
    clock.keep(1790000000000)
    wires.advance(5000)
    assert clock.recall()[0] // 1000 == 1790000005


# RTC memory and why the chip started --------------------------------------------------------


def rtc() -> Any:
    return importlib.import_module("hal.rtc")


def test_rows_stand_side_by_side(wires: Any) -> None:
    """The layout by hand: magic, value, CRC-32 of both, 16 bytes each."""
    memory = rtc()
    memory.write(b"AAAA", 1)
    memory.write(b"BBBB", 2**64 - 1)
    memory.write(b"AAAA", 0x0102030405060708)
    first = b"AAAA" + bytes((8, 7, 6, 5, 4, 3, 2, 1))
    second = b"BBBB" + b"\xff" * 8
    assert wires.memory() == b"".join(
        data + zlib.crc32(data).to_bytes(4, "little") for data in (first, second)
    )
    assert (memory.read(b"AAAA"), memory.read(b"BBBB")) == (0x0102030405060708, 2**64 - 1)
    assert memory.read(b"CCCC") is None


@pytest.mark.parametrize("junk", [b"x", b"x" * 100, b"x" * 1023, b"x" * 2048])
def test_rows_beside_what_another_firmware_left(wires: Any, junk: bytes) -> None:
    wires.set_memory(junk)
    memory = rtc()
    assert memory.read(b"AAAA") is None
    for value in (1, 2):
        memory.write(b"AAAA", value)
        memory.write(b"BBBB", value + 10)
        assert (memory.read(b"AAAA"), memory.read(b"BBBB")) == (value, value + 10)
    assert len(wires.memory()) <= 2048


def test_every_bit_of_a_row_counts(wires: Any) -> None:
    memory = rtc()
    memory.write(b"AAAA", 0x123456789)
    whole = wires.memory()
    for bit in range(8 * len(whole)):
        torn = bytearray(whole)
        torn[bit // 8] ^= 1 << bit % 8
        wires.set_memory(torn)
        assert memory.read(b"AAAA") is None
    for length in range(16):
        wires.set_memory(whole[:length])
        assert memory.read(b"AAAA") is None


POWER, HARD, WATCHDOG, DEEPSLEEP, SOFT = 1, 2, 3, 4, 5  # machine.reset_cause() of the ESP32 port


@pytest.mark.parametrize(
    ("chip", "said", "cause"),
    [
        (POWER, None, "power"),
        (POWER, "", "power"),  # a brownout that left RTC memory whole
        (WATCHDOG, "", "watchdog"),
        (WATCHDOG, "hard", "watchdog"),  # somebody stopped the agent and left it so
        (SOFT, "", "soft"),
        (SOFT, "error", "soft"),
        (HARD, "", "panic"),  # it ran and had no time to say a word
        (HARD, "soft", "soft"),
        (HARD, "hard", "hard"),
        (HARD, "error", "error"),
        (HARD, "update", "update"),
        (HARD, None, "hard"),  # nothing ever ran here, as far as anybody knows
        (DEEPSLEEP, "", "unknown"),
        (0, "", "unknown"),
    ],
)
def test_reset_causes(wires: Any, chip: int, said: str | None, cause: str) -> None:
    memory = rtc()
    if said is not None:
        memory.cause()  # a run began
        if said:
            memory.leave(said.encode())
    wires.state["cause"] = chip
    assert memory.cause() == cause
    wires.state["cause"] = HARD  # and whatever it was, the next one without a word is a panic
    assert memory.cause() == "panic"


@pytest.mark.parametrize("spoilt", [b"WLr1" + b"\xff" * 12, b"WLr1", b"\0" * 32])
def test_a_spoilt_breadcrumb_says_nothing(wires: Any, spoilt: bytes) -> None:
    wires.set_memory(spoilt)
    wires.state["cause"] = HARD
    assert rtc().cause() == "hard"


def test_the_last_moment_alive(wires: Any) -> None:
    memory = rtc()
    assert memory.last_alive() is None
    assert memory.last_reached() is None
    for boot, up_ms in ((1, 0), (17, 2**30), (2**24 - 1, 2**40 - 1)):
        memory.alive(boot, up_ms, "0000002a", boot)
        assert memory.last_alive() == (boot, up_ms)
        assert memory.last_reached() == ("0000002a", boot)
    memory.alive(1, 1, "ffffffff", 2**32 - 1)
    assert memory.last_reached() == ("ffffffff", 2**32 - 1)


# Watchdog -----------------------------------------------------------------------------------


def test_watchdog(wires: Any) -> None:
    watchdog = importlib.import_module("hal.watchdog")
    dog = watchdog.Watchdog(10000)
    dog.feed()
    dog.feed()
    watchdog.widen()
    assert wires.log == [("watchdog", 10000), ("feed",), ("feed",), ("watchdog", 120000)]
    wires.state["cause"] = HARD
    assert rtc().cause() == "hard"  # a person's


# Wi-Fi and Ethernet -------------------------------------------------------------------------

OK, NO_AP, PASSWORD, SILENT = range(4)  # as the stubs of `network` number them
DAY_MS = 86_400_000


class Air:
    """A Wi-Fi over the stubs; counts the calls of `connect` by their moment."""

    def __init__(self, wires: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wires = wires
        network = importlib.import_module("network")
        inner = network.WLAN.connect
        self.tries: list[int] = []
        self.told: list[tuple[int, str]] = []  # what `turn` gave, and when
        self.fails: Exception | None = None
        self.code: int | None = None  # what `status` says instead
        status = network.WLAN.status

        def connect(wlan: Any, *args: Any) -> None:
            self.tries.append(wires.state["ticks"])
            if self.fails is not None:
                raise self.fails
            inner(wlan, *args)

        monkeypatch.setattr(network.WLAN, "connect", connect)
        monkeypatch.setattr(
            network.WLAN,
            "status",
            lambda wlan, *what: status(wlan, *what) if what or not self.code else self.code,
        )
        wifi = importlib.import_module("hal.wifi")
        self.wifi = wifi.Wifi(
            "home", "secret", lambda ticks: wires.ticks_diff(wires.ticks_ms(), ticks)
        )

    def run(self, ms: int, step_ms: int = 100) -> None:
        for _ in range(ms // step_ms):
            self.wires.advance(step_ms)
            word = self.wifi.turn(self.wires.ticks_ms())
            if word is not None:
                self.told.append((self.wires.state["ticks"], word))


def test_wifi_joins(wires: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    air = Air(wires, monkeypatch)
    assert not air.wifi.up
    air.run(300)
    assert air.wifi.up and air.wifi.why is None and len(air.tries) == 1 and not air.told
    assert air.wifi.dns() == "127.0.0.1"


def test_wifi_tries_ever_more_rarely_and_comes_back(
    wires: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wires.state["wifi"] = NO_AP
    air = Air(wires, monkeypatch)
    air.run(1000000)
    assert not air.wifi.up and air.wifi.why == "wifi_no_ap"
    gaps = [b - a for a, b in itertools.pairwise(air.tries)]
    assert gaps == sorted(gaps) and 20000 <= gaps[0] <= 23000
    assert gaps[-1] == gaps[-2] and 80000 <= gaps[-1] <= 80500  # 20 s of trying, 60 s of rest
    wires.state["wifi"] = OK
    air.run(81000)
    assert air.wifi.up
    wires.state["wifi"] = NO_AP
    air.run(100)
    assert not air.wifi.up
    count = len(air.tries)
    air.run(30000)
    assert len(air.tries) > count  # patience begins anew


def test_an_access_point_that_is_gone_for_a_day(
    wires: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over the wrap of the ticks, after 12.4 days: a try each 80 s, one word, and back."""
    wires.state["ticks"] = 2**30 - DAY_MS // 2
    air = Air(wires, monkeypatch)
    air.run(1000)
    assert air.wifi.up
    wires.state["wifi"] = NO_AP
    air.run(DAY_MS, 500)
    assert [word for _, word in air.told] == ["wifi_no_ap"]
    assert DAY_MS // 82000 <= len(air.tries) <= DAY_MS // 80000 + 6
    wires.state["wifi"] = OK
    air.run(81000)
    assert air.wifi.up and air.wifi.why is None


# ESP-IDF's wifi_err_reason_t, as network_wlan.c of the port lets it through
@pytest.mark.parametrize(("code", "word"), [
    (201, "wifi_no_ap"), (212, "wifi_no_ap"), (202, "wifi_password"), (204, "wifi_password"),
    (15, "wifi_password"), (210, "wifi_security"), (211, "wifi_security"), (2, "wifi_2"),
    (200, "wifi_200"), (1000, "wifi_no_answer"), (1001, "wifi_no_answer"),
])  # fmt: skip
def test_the_chips_reasons_have_names(
    wires: Any, monkeypatch: pytest.MonkeyPatch, code: int, word: str
) -> None:
    wires.state["wifi"] = NO_AP
    air = Air(wires, monkeypatch)
    air.code = code
    air.run(200_000)
    ((at, told),) = air.told  # once, however often it is tried
    assert told == word == air.wifi.why and 20_000 < at < 21_000 and len(air.tries) > 2


def test_a_wrong_password_is_told_from_no_answer(
    wires: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port says "connecting" for as long as it tries again by itself, which is bounded; and
    never is the password in what is told."""
    wires.state["wifi"] = PASSWORD
    air = Air(wires, monkeypatch)
    air.run(30_000)
    wires.state["wifi"] = SILENT
    air.run(60_000)
    wires.state["wifi"] = NO_AP
    air.run(60_000)
    assert [word for _, word in air.told] == ["wifi_password", "wifi_no_address", "wifi_no_ap"]


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_wifi_that_cannot_even_try(
    wires: Any, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    air = Air(wires, monkeypatch)
    air.fails = kind("Wifi Internal Error")
    air.run(60000)
    assert not air.wifi.up and air.wifi.why == "Wifi Internal Error"
    assert 3 <= len(air.tries) <= 8
    air.fails = None
    air.run(61000)
    assert air.wifi.up


class Cable:
    """Ethernet over the stubs, as a board description has it."""

    SPEC: ClassVar = {
        "phy": "LAN8720", "addr": 0, "mdc": 23, "mdio": 18, "power": 12, "ref_clk": 17
    }  # fmt: skip

    def __init__(self, wires: Any) -> None:
        self.wires = wires
        self.told: list[str] = []
        wired = importlib.import_module("hal.wired")
        self.net = wired.Wired(
            self.SPEC, lambda t: wires.ticks_diff(wires.ticks_ms(), t), wires.ticks_ms()
        )

    def run(self, ms: int) -> None:
        for _ in range(ms // 100):
            self.wires.advance(100)
            word = self.net.turn(self.wires.ticks_ms())
            if word is not None:
                self.told.append(word)


def test_ethernet_comes_up_goes_and_comes_back(wires: Any) -> None:
    cable = Cable(wires)
    cable.run(100)
    assert cable.net.up and cable.net.why is None and cable.net.dns() == "127.0.0.1"
    wires.state["lan"] = 1
    cable.run(19_000)
    assert not cable.net.up and not cable.told, "a plug that is moved is no news"
    cable.run(100_000)
    assert cable.told == ["lan_no_cable"] == [cable.net.why]
    wires.state["lan"] = 2
    cable.run(60_000)
    assert cable.told == ["lan_no_cable", "lan_no_address"] and not cable.net.up
    wires.state["lan"] = 0
    cable.run(100)
    assert cable.net.up and cable.net.why is None
    wires.state["lan"] = 1
    cable.run(60_000)
    assert cable.told[2:] == ["lan_no_cable"], "another time is told again"


def test_a_phy_that_does_not_answer_leaves_the_board_alive(
    wires: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    wires.state["lan"] = 3
    cable = Cable(wires)
    assert "esp_eth_driver_install" in capsys.readouterr().out
    cable.run(100_000)
    assert not cable.net.up and cable.told == ["lan_no_phy"]


def test_an_image_without_ethernet_leaves_the_board_alive(
    wires: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(importlib.import_module("network"), "__getattr__")
    cable = Cable(wires)
    cable.run(30_000)
    assert cable.told == ["lan_no_phy"] and "LAN" in capsys.readouterr().out


def test_ethernet_is_made_as_the_board_says(wires: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MicroPython's own line for the Olimex ESP32-PoE (docs/esp32/quickref.rst), number for
    number."""
    network = importlib.import_module("network")
    made: list[dict[str, Any]] = []

    class Lan(network.LAN):
        def __init__(self, **how: Any) -> None:
            made.append({k: getattr(v, "id", v) for k, v in how.items()})
            super().__init__(**how)

    monkeypatch.setattr(network, "LAN", Lan)
    wired = importlib.import_module("hal.wired")
    wired.Wired(build.load_board("olimex_poe")["lan"], lambda t: 0, 0)
    assert made == [{"mdc": 23, "mdio": 18, "power": 12, "phy_type": network.PHY_LAN8720,
                     "phy_addr": 0, "ref_clk": 17, "ref_clk_mode": 3}]  # fmt: skip
