"""The laptop tool and the simulated meters, against transcripts and exact arithmetic."""

import asyncio
import json
import socket
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tools import paths
from tools.meter import __main__ as command
from tools.meter import catalog, control, encode, scan, wire
from tools.meter.decode import decode, placed
from tools.meter.ptypair import PtyPair
from tools.meter.simulator import SimulatedMeter, Simulator, running

DATA = Path(__file__).parent / "data"
TRANSCRIPTS = json.loads((DATA / "transcripts.json").read_text())
# Bytes made with struct from what the sources of each say (address, type, scale, word order), not
# from firmware/meters: two hands that must agree.
CONSTRUCTED = json.loads((DATA / "constructed.json").read_text())
GENERIC = {"meter": "generic", "registers": {}}
SDM630 = catalog.load("eastron_sdm630_v2")


def framed(data: bytes) -> bytes:
    return data + wire.modbus.crc16(data, len(data)).to_bytes(2, "little")


# -- transcripts ---------------------------------------------------------------------------------

SAID = [t for t in TRANSCRIPTS if t["request"] and (t["response"] or t.get("response_bad"))]
SAID += CONSTRUCTED


def described(t: dict) -> dict:
    """The meter's description; `registers` of a transcript are others than the board reads."""
    description = GENERIC if t["meter"] == "generic" else catalog.load(t["meter"])
    if "registers" in t:
        return {k: v for k, v in description.items() if k != "sunspec"} | {
            "registers": t["registers"]
        }
    return placed(description, t["start"]) if "start" in t else description


@pytest.mark.parametrize("t", SAID, ids=lambda t: f"{t['meter']} {t['title']}")
def test_transcripts_decode_as_stated(t):
    description = described(t)
    request = bytes.fromhex(t["request"])
    reply = bytes.fromhex(t["response"] or t["response_bad"])
    found = decode(description, request, reply, False)
    expected = t.get("expected", {})
    if "exception" in expected or "error" in expected:
        assert found == expected
    else:
        assert "error" not in found and "exception" not in found
        assert {k: found.get(k, "missing") for k in expected} == expected


@pytest.mark.parametrize("t", [t for t in SAID if t["response"]], ids=lambda t: t["title"])
def test_transcripts_over_tcp_say_the_same(t):
    description = described(t)
    request, reply = bytes.fromhex(t["request"]), bytes.fromhex(t["response"])

    def tcp(frame: bytes) -> bytes:
        return b"\x12\x34\0\0" + (len(frame) - 2).to_bytes(2, "big") + frame[:-2]

    rtu = decode(description, request, reply, False)
    assert decode(description, tcp(request), tcp(reply), True) == rtu
    assert decode(description, tcp(request), b"\x12\x35" + tcp(reply)[2:], True) == {
        "error": "transaction"
    }


def test_every_meter_of_a_transcript_that_reads_registers_is_known():
    told = {t["meter"] for t in TRANSCRIPTS if "expected" in t} - {"generic"}
    assert told <= set(catalog.known())


def test_every_meter_has_a_transcript_that_gives_values_and_a_source():
    """Adding a meter is one file in firmware/meters and one transcript."""
    told = {t["meter"] for t in SAID if set(t.get("expected", ())) - {"exception", "error"}}
    assert set(catalog.known()) <= told
    assert all(t["source"] for t in TRANSCRIPTS + CONSTRUCTED)
    assert {t["provenance"] for t in TRANSCRIPTS + CONSTRUCTED} == {"published", "constructed"}


# -- descriptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", catalog.known())
def test_a_description_is_complete_and_says_where_it_comes_from(key):
    d = catalog.load(key)
    assert d["meter"] == key
    assert d["sources"] and all(len(source) > 10 for source in d["sources"])
    assert d["confidence"] in ("high", "medium", "unverified")
    assert "energy_import_wh" in d["registers"]
    assert set(d.get("unverified", [])) <= set(d["registers"])
    assert d["bus"]["kind"] in ("rtu", "tcp")
    for name in d["registers"]:
        assert name == "serial" or name.rsplit("_", 1)[1] in ("wh", "w", "mv", "ma", "mhz")
    if "sunspec" in d:
        d = placed(d, 0)
    meter = wire.registers.Meter(d)
    meter.begin(True)
    limit = d.get("max_registers", 125)
    count = 0
    while (block := meter.block) is not None:
        assert 0 < block.count <= limit
        meter.accept(bytes(2 * block.count), 0)
        count += 1
    assert count <= 6, "few requests a reading"


EXACT_UNIT_WH = {  # what one count of the energy register is worth, where it is a whole number
    "u32": lambda scale: scale, "u64": lambda scale: scale, "i32": lambda scale: scale,
    "i64": lambda scale: scale,
}  # fmt: skip


@pytest.mark.parametrize("key", catalog.known())
@settings(max_examples=25, deadline=None)
@given(
    wh=st.integers(0, 40_000_000),
    load_w=st.integers(-7000, 22_000),
    ms=st.integers(0, 3_600_000),
)
def test_the_firmware_reads_from_each_meter_what_it_shows(key, wh, load_w, ms):
    """Encoded here with struct and fractions, decoded by the firmware with integers."""
    description = catalog.load(key)
    device = SimulatedMeter(description, start_wh=wh, load_w=load_w, now_ms=lambda: 0)
    device.advance(ms)
    assume(key != "sunspec_201_204" or wh > 0)
    names = [name for name in description["registers"] if name != "serial"]
    meter = wire.registers.Meter(description, names)
    words = device.registers()
    meter.begin(True)
    while (block := meter.block) is not None:
        data = b"".join(
            words.get(block.address + i, 0).to_bytes(2, "big") for i in range(block.count)
        )
        meter.accept(data, 0)
    meter.complete(0)
    assert meter.energy_wh == device.shown_wh()
    nothing = None if key == "sunspec_201_204" else 0  # to SunSpec, a 0 was never accumulated
    assert (meter.export_wh or nothing) == (device.shown_wh("energy_export_wh") or nothing)
    truth = device.values()
    _, kind, scale, exponent_at = device._row("energy_import_wh")
    if kind in EXACT_UNIT_WH and exponent_at is None:
        raw = truth["energy_import_wh"] / scale
        assert meter.energy_wh == encode.half_up(Fraction(raw.__floor__()) * scale)
    if "serial" in description["registers"]:
        assert meter.serial is not None and meter.serial.endswith("12345678")
    signed = description["registers"].get("power_w", [0, "i32"])[1][0] != "u"
    if meter.power_w is not None and (signed or load_w >= 0):
        assert abs(meter.power_w - load_w) <= 10  # Socomec and Hager show steps of 10 W


def test_unknown_meters_are_named_with_a_remedy():
    with pytest.raises(LookupError, match=r"'eastron_sdm639_v2' is unknown: .*eastron_sdm630_v2"):
        catalog.load("eastron_sdm639_v2")


# -- the simulated meter -------------------------------------------------------------------------


def test_energy_is_power_over_time_to_the_mws():
    now = 0
    device = SimulatedMeter(SDM630, start_wh=1000, now_ms=lambda: now)
    device.set_load(11_000)
    for _ in range(1000):
        now += 327
        device.settle()
    assert device.values()["energy_import_wh"] == 1000 + Fraction(11_000 * 327, 3600)
    device.set_speed(60)
    now += 60_000
    device.set_load(-2000)
    now += 60_000
    values = device.values()
    assert values["energy_import_wh"] == 12_000 + Fraction(11_000 * 327, 3600)
    assert values["energy_export_wh"] == 2000


def test_an_f32_register_in_kwh_shows_its_steps():
    def shown(first: int) -> list[int | None]:
        return [SimulatedMeter(SDM630, start_wh=first + i).shown_wh() for i in range(20)]

    assert shown(16_383_980) == list(range(16_383_980, 16_384_000))
    assert len(set(shown(20_000_000))) < 20, "2^-9 kWh is more than 1 Wh"


def test_control_commands_and_their_errors():
    device = SimulatedMeter(SDM630, start_wh=5, speed=0)
    assert control.obey(device, {"do": "get"})["wh"] == 5
    control.obey(device, {"do": "load", "w": 3600})
    assert control.obey(device, {"do": "advance", "ms": 10_000})["wh"] == 15
    frozen = control.obey(device, {"do": "fault", "kind": "frozen", "on": True})
    assert frozen["faults"] == ["frozen"]
    assert control.obey(device, {"do": "advance", "ms": 10_000})["wh"] == 15
    assert control.obey(device, {"do": "fault", "kind": "frozen", "on": False})["wh"] == 25
    assert control.obey(device, {"do": "fault", "kind": "rollback", "wh": 20})["wh"] == 5
    assert control.obey(device, {"do": "set", "wh": 7, "serial": "9"})["serial"] == "9"
    for wrong in (
        {}, {"do": "fly"}, {"do": "load"}, {"do": "load", "w": "much"},
        {"do": "fault", "kind": "earthquake"},
    ):  # fmt: skip
        answer = control.obey(device, wrong)
        assert answer["ok"] is False and answer["error"]


def test_the_control_port_speaks_lines():
    async def talk() -> list[dict]:
        server, port = await control.serve(SimulatedMeter(SDM630, start_wh=42), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b'{"do":"get"}\nnonsense\n[1]\n{"do":"load","w":100}\n')
            answers = [json.loads(await reader.readline()) for _ in range(4)]
            writer.close()
        return answers

    got, nonsense, no_object, loaded = asyncio.run(talk())
    assert got["wh"] == 42 and loaded["w"] == 100
    assert nonsense["ok"] is no_object["ok"] is False


# -- on the wire ---------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(params=("rtu", "tcp"))
def rig(request, tmp_path):
    """A simulated SDM630, and the firmware's master and meter at the other end of its wire."""
    device = SimulatedMeter(SDM630, start_wh=1_234_567, load_w=11_040, speed=0)
    meter = wire.registers.Meter(SDM630)
    meter.timeout_ms = 300
    if request.param == "rtu":
        with (
            PtyPair(tmp_path / "line") as cable,
            running(lambda: Simulator(device, port=cable.b)),
        ):
            bus = wire.serial_bus(str(tmp_path / "line"), 9600, "N", 1)
            bus.add(meter, 1, 50)
            yield device, meter, bus
    else:
        address = ("127.0.0.1", free_port())
        with running(lambda: Simulator(device, tcp=address)):
            bus = wire.tcp_bus(*address)
            bus.add(meter, 1, 50)
            yield device, meter, bus


def test_a_meter_is_read_to_the_wh(rig):
    device, meter, bus = rig
    assert wire.poll(bus, lambda: meter.readings > 0, 10)
    assert (meter.serial, meter.energy_wh, meter.power_w, meter.current_ma) == (
        "12345678", 1_234_567, 11_040, 16_000)  # fmt: skip
    device.advance(3_600_000)
    assert wire.poll(bus, lambda: meter.energy_wh == 1_234_567 + 11_040, 10)


@pytest.mark.parametrize(
    "kind", ("silence", "crc", "truncate", "noise", "foreign", "exception", "late")
)
def test_each_fault_is_dropped_and_counted_and_the_reading_comes_back(rig, kind):
    device, meter, bus = rig
    assert wire.poll(bus, lambda: meter.readings > 0, 10)
    device.set_fault(kind, True, count=1, ms=550)
    assert wire.poll(bus, lambda: sum(meter.counts) > 0, 10)
    device.advance(3_600_000)
    assert meter.energy_wh == 1_234_567
    assert wire.poll(bus, lambda: meter.energy_wh == 1_234_567 + 11_040, 20)
    assert meter.error == 0


def test_silence_fails_the_poll_and_a_swapped_meter_is_seen(rig):
    device, meter, bus = rig
    assert wire.poll(bus, lambda: meter.readings > 0, 10)
    device.set_fault("silence", True)
    assert wire.poll(bus, lambda: meter.failed > 0, 20)
    device.serial = "777"
    device.set_fault("silence", False)
    meter.demand()
    assert wire.poll(bus, lambda: meter.serial == "777", 20)


def test_a_meter_that_refuses_gaps_is_read_in_parts(tmp_path):
    device = SimulatedMeter(SDM630, start_wh=77, load_w=690, speed=0)
    meter = wire.registers.Meter(SDM630)
    with (
        PtyPair(tmp_path / "line") as cable,
        running(lambda: Simulator(device, port=cable.b, strict=True)),
    ):
        bus = wire.serial_bus(str(tmp_path / "line"), 9600, "N", 1)
        bus.add(meter, 1, 50)
        assert wire.poll(bus, lambda: meter.readings > 1, 20)
    assert (meter.energy_wh, meter.export_wh) == (77, 0)
    assert (meter.power_w, meter.current_ma) == (690, 1000)


@pytest.mark.parametrize("key", ("sunspec_201_204", "sunspec_211_214"))
@pytest.mark.parametrize("at", (40000, 0, 50000))
def test_a_sunspec_meter_is_discovered(tmp_path, key, at):
    description = catalog.load(key)
    device = SimulatedMeter(description, 7_654_320, 10, load_w=690, speed=0, sunspec_at=at)
    meter = wire.registers.Meter(description)
    meter.timeout_ms = 300
    with (
        PtyPair(tmp_path / "line") as cable,
        running(lambda: Simulator(device, port=cable.b, strict=True)),
    ):
        bus = wire.serial_bus(str(tmp_path / "line"), 9600, "N", 1)
        bus.add(meter, 1, 50)
        assert wire.poll(bus, lambda: meter.readings > 1, 20)
        line = scan.SerialLine(str(tmp_path / "line"), 9600, "N", 1, 1.0)
        assert (key, "sure", "12345678") in list(scan.identify(line, 1))
        line.close()
    assert (meter.serial, meter.energy_wh, meter.export_wh) == ("12345678", 7_654_320, 10)
    assert (meter.power_w, meter.current_ma) == (690, 1000)


def test_a_device_without_the_model_is_no_meter(tmp_path):
    description = catalog.load("sunspec_201_204")
    device = SimulatedMeter(catalog.load("sunspec_211_214"), speed=0)
    meter = wire.registers.Meter(description)
    with PtyPair(tmp_path / "line") as cable, running(lambda: Simulator(device, port=cable.b)):
        bus = wire.serial_bus(str(tmp_path / "line"), 9600, "N", 1)
        bus.add(meter, 1, 50)
        assert wire.poll(bus, lambda: meter.failed > 0, 20)
    assert meter.readings == 0 and meter.energy_wh is None


def test_scan_finds_the_slave_and_names_the_meter(tmp_path):
    device = SimulatedMeter(SDM630, speed=0)
    with (
        PtyPair(tmp_path / "line") as cable,
        running(lambda: Simulator(device, port=cable.b, unit=3)),
    ):
        line = scan.SerialLine(str(tmp_path / "line"), 9600, "N", 1, 1.0)
        assert [unit for unit in range(1, 5) if scan.answers(line, unit)] == [3]
        assert list(scan.identify(line, 3)) == [("eastron_sdm630_v2", "sure", "12345678")]
        line.close()


# -- as a command --------------------------------------------------------------------------------


def tool(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [paths.PYTHON, "-m", "tools.meter", *args],
        cwd=paths.ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_decode_command():
    def decoded(meter: str, request: str, response: str):
        return tool("decode", "--meter", meter, "--request", request, "--response", response)

    request, reply = "01 04 00 00 00 02 71 CB", "01 04 04 43 66 33 34 1B 38"
    done = decoded("eastron_sdm630_v2", request, reply)
    assert json.loads(done.stdout) == {"voltage_l1_mv": 230_200}
    assert json.loads(decoded("generic", request, "01").stdout) == {"error": "short"}
    refused = ["--request", "000100000006010400000002", "--response", "000100000003018402"]
    done = tool("decode", "--meter", "generic", "--tcp", *refused)
    assert json.loads(done.stdout) == {"exception": 2}
    done = decoded("sdm", request, reply)
    assert done.returncode == 2 and "unknown" in done.stderr
    done = decoded("generic", "0104", reply)
    assert done.returncode == 2 and "request" in done.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("decode --meter eastron_sdm630_v2 --request zz --response 01", "'zz' is no hex"),
        ("decode --meter sunspec_201_204 --request 2A039CAC00056DA3 --response 01", "--start"),
        ("read --meter eastron_sdm630_v2 --tcp host", "HOST:PORT"),
        ("read --meter eastron_sdm630_v2 --port /dev/nothing", "/dev/nothing"),
        ("scan --tcp 127.0.0.1:9 --units x", "'x' are no addresses"),
        ("scan --tcp 127.0.0.1:9 --units 5-2", "the lower one first"),
        ("scan --tcp 127.0.0.1:9 --units 0-9", "1 to 247"),
        ("simulate --meter eastron_sdm630_v2 --tcp 127.0.0.1:99999", "HOST:PORT"),
        ("simulate --meter eastron_sdm630_v2 --port /dev/nothing", "check address"),
        ("simulate --meter nosuch --tcp 127.0.0.1:0", "unknown"),
    ],
)
def test_wrong_input_is_an_error_of_one_line_and_ends_with_2(args, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["meter", *args.split()])
    try:
        code = command.main()
    except SystemExit as e:  # argparse's
        code = e.code
    err = capsys.readouterr().err
    assert code == 2 and told in err and "Traceback" not in err


def test_list_command_names_every_meter_and_its_doubts():
    lines = tool("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == catalog.known()
    assert any("unverified" in line for line in lines)


def test_simulate_and_read_commands(tmp_path):
    link = tmp_path / "meter"
    with subprocess.Popen(
        [paths.PYTHON, "-m", "tools.meter", "simulate", "--meter", "eastron_sdm630_v2", "--pty",
         link, "--control", "127.0.0.1:0", "--start-wh", "123456", "--speed", "0"],
        cwd=paths.ROOT, stdout=subprocess.PIPE, text=True,
    ) as played:  # fmt: skip
        try:
            assert played.stdout is not None
            ready = json.loads(played.stdout.readline())
            assert ready["ready"] and ready["pty"] == str(link)
            host, port = ready["control"].split(":")
            with socket.create_connection((host, int(port)), 10) as s, s.makefile("rw") as line:
                line.write('{"do":"load","w":690}\n{"do":"advance","ms":3600000}\n')
                line.flush()
                answers = [json.loads(line.readline()) for _ in range(2)]
            assert answers[1]["wh"] == 123_456 + 690
            done = tool("read", "--meter", "eastron_sdm630_v2", "--port", str(link), "--json")
            assert json.loads(done.stdout)["energy_import_wh"] == 123_456 + 690
            assert json.loads(done.stdout)["serial"] == "12345678"
        finally:
            played.terminate()
            played.wait(20)
    assert not link.is_symlink()


def test_read_and_scan_commands_over_tcp():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = s.getsockname()
    device = SimulatedMeter(SDM630, start_wh=123_456, load_w=6900, speed=0)
    at = f"{address[0]}:{address[1]}"
    with running(lambda: Simulator(device, tcp=address, unit=3)):
        done = tool("read", "--meter", "eastron_sdm630_v2", "--tcp", at, "--unit", "3")
        table = dict(line.split() for line in done.stdout.splitlines())
        assert (table["energy_import_wh"], table["power_w"]) == ("123456", "6900")
        assert (table["voltage_l1_mv"], table["current_l1_ma"]) == ("230000", "10000")
        done = tool("scan", "--tcp", at, "--units", "1-4", "--timeout-s", "1")
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert found == [
            {"unit": 3, "meter": "eastron_sdm630_v2", "sure": "sure", "serial": "12345678"}
        ]
        done = tool("scan", "--tcp", at, "--units", "1-2", "--timeout-s", "1")
        assert done.returncode == 1 and "nobody answers" in done.stderr
