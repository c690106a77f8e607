"""A meter that is not there: pymodbus plays its registers, which follow a load over time.

The load is in W, time in ms, so energy is exact in mWs (3,600,000 to the Wh); a register shows it
as its type can: integers rounded down, floats to the nearest. `shown_wh` is that register read
back by exact arithmetic, which is what a charge point must see, to the Wh.

Faults, each on or off, some for a number of replies only:
- on the wire: silence, crc, truncate, noise, foreign (another slave answers), exception (code),
  late (ms);
- in the meter: frozen (registers stand still), rollback (energy shows `wh` less; with a count of
  one it is a glitch).

Limits: an f32 in kWh resolves 1 Wh below 16,384 kWh only, as in the real meter.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from pymodbus import FramerType
from pymodbus.constants import ExcCodes
from pymodbus.framer.rtu import FramerRTU
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from . import encode
from .catalog import Description
from .signed import SIGNERS, Signer

MWS_PER_WH = 3_600_000
WIRE_FAULTS = ("silence", "crc", "truncate", "noise", "foreign", "exception", "late")
METER_FAULTS = ("frozen", "rollback")
VOLTAGE_MV = 230_000
FREQUENCY_MHZ = 50_000
_COMMON = 68  # registers of SunSpec's model 1, its header included


@dataclass
class Fault:
    """One fault that is on: `left` replies more (None: until switched off), and its parameter."""

    left: int | None = None
    code: int = 4
    ms: int = 1500
    wh: int = 1000


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


@dataclass
class SimulatedMeter:
    """The device: exact energy, a load, a clock of its own, registers on demand."""

    description: Description
    start_wh: int = 0
    export_wh: int = 0
    serial: str = "12345678"
    now_ms: Callable[[], int] = monotonic_ms
    speed: int = 1
    load_w: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)
    replies: int = 0
    sunspec_at: int = 40000

    def __post_init__(self) -> None:
        self._import_mws = self.start_wh * MWS_PER_WH
        self._export_mws = self.export_wh * MWS_PER_WH
        self._at_ms = self.now_ms()
        self._frozen: dict[int, int] | None = None
        kind = self.description.get("signs")
        self.signer: Signer | None = SIGNERS[kind](self) if kind else None

    # -- what happens to it

    def settle(self) -> None:
        """Count the energy up to now."""
        now_ms = self.now_ms()
        elapsed_ms, self._at_ms = now_ms - self._at_ms, now_ms
        self.advance(elapsed_ms * self.speed)

    def advance(self, ms: int) -> None:
        """Let `ms` of the meter's own time pass at once."""
        energy_mws = self.load_w * ms
        if energy_mws >= 0:
            self._import_mws += energy_mws
        else:
            self._export_mws -= energy_mws

    def set_load(self, w: int) -> None:
        self.settle()
        self.load_w = w

    def set_speed(self, x: int) -> None:
        """Run the meter's clock x times as fast; 0 stops it (then `advance` moves it)."""
        self.settle()
        self.speed = x

    def set_energy(self, wh: int) -> None:
        self.settle()
        self._import_mws = wh * MWS_PER_WH

    def set_fault(self, kind: str, on: bool, **parameters: int) -> None:
        if kind not in WIRE_FAULTS + METER_FAULTS:
            known = ", ".join(WIRE_FAULTS + METER_FAULTS)
            raise ValueError(f"fault {kind!r} is none of {known}")
        self.settle()
        if on:
            fault = Fault(left=parameters.pop("count", None), **parameters)
            if kind == "frozen":
                self._frozen = self.registers()
            self.faults[kind] = fault
        else:
            self.faults.pop(kind, None)
        if "frozen" not in self.faults:
            self._frozen = None

    def take(self, *kinds: str) -> tuple[str, Fault] | None:
        """The first of these faults that is on, used up by one reply."""
        for kind in kinds:
            fault = self.faults.get(kind)
            if fault is None:
                continue
            if fault.left is not None:
                fault.left -= 1
                if fault.left <= 0:
                    del self.faults[kind]
            return kind, fault
        return None

    # -- what it shows

    def values(self) -> dict[str, Fraction]:
        """Exact values by field name, in the unit of the name."""
        self.settle()
        rolled_back = self.faults.get("rollback")
        import_wh = Fraction(self._import_mws, MWS_PER_WH)
        if rolled_back is not None:
            import_wh = max(Fraction(0), import_wh - rolled_back.wh)
        rows = self.description["registers"]
        phases = [n for n in (1, 2, 3) if f"current_l{n}_ma" in rows] or [1]
        each_w = Fraction(self.load_w, len(phases))
        values = {
            "energy_import_wh": import_wh,
            "energy_export_wh": Fraction(self._export_mws, MWS_PER_WH),
            "power_w": Fraction(self.load_w),
            "power_import_w": Fraction(max(0, self.load_w)),
            "power_export_w": Fraction(max(0, -self.load_w)),
            "frequency_mhz": Fraction(FREQUENCY_MHZ),
            "voltage_dc_mv": Fraction(VOLTAGE_MV),
            "current_dc_ma": abs(Fraction(self.load_w * 1_000_000, VOLTAGE_MV)),
        }
        for n in phases:
            values[f"voltage_l{n}_mv"] = Fraction(VOLTAGE_MV)
            values[f"power_l{n}_w"] = each_w
            values[f"current_l{n}_ma"] = abs(each_w * 1_000_000 / VOLTAGE_MV)
        return values

    def _row(self, name: str) -> tuple[int, str, Fraction, int | None]:
        row = self.description["registers"][name]
        address = row[0][1] if isinstance(row[0], list) else row[0]
        scale = Fraction(row[2] if len(row) > 2 else 1, row[3] if len(row) > 3 else 1)
        exponent_at = row[4] if len(row) > 4 else None
        if "sunspec" in self.description:
            start = self.sunspec_at + (2 if name == "serial" else 2 + _COMMON)
            address += start
            exponent_at = None if exponent_at is None else exponent_at + start
        return address, row[1], scale, exponent_at

    def energy_at(self) -> int:
        """Where the import register begins."""
        return self._row("energy_import_wh")[0]

    def _models(self) -> dict[int, int]:
        """SunSpec's marks: "SunS", model 1, the meter's model, the end."""
        common = self.sunspec_at + 2
        model = common + _COMMON
        length = 124 if self.description["sunspec"][0] > 210 else 105
        marks = {self.sunspec_at: (0x5375, 0x6E53), common: (1, _COMMON - 2)}
        marks |= {model: (self.description["sunspec"][-2], length)}
        marks |= {model + 2 + length: (0xFFFF, 0)}
        words = dict.fromkeys(range(self.sunspec_at, model + length + 4), 0)
        return words | {at + i: w for at, pair in marks.items() for i, w in enumerate(pair)}

    def registers(self) -> dict[int, int]:
        """Every register that the description names, as the wire shows it now."""
        if self._frozen is not None:
            self.settle()
            return self._frozen
        order = self.description.get("order", "ABCD")
        words = self._models() if "sunspec" in self.description else {}
        values = self.values()
        exponents: dict[int, int] = {}
        rows = {name: self._row(name) for name in self.description["registers"]}
        for name, (_, kind, scale, exponent_at) in rows.items():
            if exponent_at is not None:
                least = exponents.get(exponent_at, 0)
                exponents[exponent_at] = _exponent(kind, values[name] / scale, least)
        for name, (address, kind, scale, exponent_at) in rows.items():
            if name == "serial":
                found = self._serial(kind, order)
            elif name in values:
                raw = values[name] / scale
                if kind[0] == "u":  # such a meter cannot see power that flows back
                    raw = max(raw, Fraction(0))
                if exponent_at is not None:
                    exponent = exponents[exponent_at]
                    raw /= Fraction(10) ** exponent
                    words[exponent_at] = encode.reorder(
                        encode.pack("i16", Fraction(exponent)), order
                    )[0]
                found = encode.reorder(encode.pack(kind, raw), order)
            else:
                found = [0] * (encode.size(kind) // 2)
            words.update(enumerate(found, address))
        if "identity" in self.description:
            at, kind, (known, *_) = self.description["identity"]
            address = at[1] if isinstance(at, list) else at
            form, _, count = kind.partition(":")
            found = encode.text(form, int(count), known) if count else [known]
            words.update(enumerate(found, address))
        return words

    def _serial(self, kind: str, order: str) -> list[int]:
        form, _, count = kind.partition(":")
        if count:
            return encode.text(form, int(count), self.serial)
        return encode.reorder(encode.pack(form, Fraction(int(self.serial))), order)

    def shown_wh(self, name: str = "energy_import_wh") -> int | None:
        """What the energy register says, in Wh, rounded half up once; None if it has none."""
        if name not in self.description["registers"]:
            return None
        address, kind, scale, exponent_at = self._row(name)
        order = self.description.get("order", "ABCD")
        words = self.registers()
        raw = b"".join(
            words[address + i].to_bytes(2, "big") for i in range(encode.size(kind) // 2)
        )
        raw = b"".join(w.to_bytes(2, "big") for w in encode.reorder(raw, order))
        value = encode.unpack(kind, raw) * scale
        if exponent_at is not None:
            exponent = words[exponent_at].to_bytes(2, "big")
            exponent = encode.reorder(exponent, order)[0].to_bytes(2, "big")
            value *= Fraction(10) ** int.from_bytes(exponent, "big", signed=True)
        return encode.half_up(value)


def _exponent(kind: str, raw: Fraction, least: int) -> int:
    """The smallest decimal exponent, at least `least`, with which the type can hold `raw`."""
    for exponent in range(least, 11):
        try:
            encode.pack(kind, raw / Fraction(10) ** exponent)
        except OverflowError:
            continue
        return exponent
    raise OverflowError(f"{raw} does not fit {kind} with any scale factor")


class Simulator:
    """The meter on a wire: a serial port, or TCP."""

    def __init__(
        self,
        meter: SimulatedMeter,
        *,
        port: str | None = None,
        tcp: tuple[str, int] | None = None,
        unit: int = 1,
        strict: bool = False,
    ) -> None:
        """`strict`: only described registers exist; otherwise small gaps read as 0."""
        self.meter = meter
        self.unit = unit
        self._tcp = tcp
        description = meter.description
        rows = description["registers"].values()
        self._functions = {
            row[0][0] if isinstance(row[0], list) else description.get("function", 3)
            for row in rows
        }
        if meter.signer is not None:
            self._functions |= {3, 16}
        self._limit = description.get("max_registers", 125)
        # The second device stands for all others, which are not there: pymodbus would answer for a
        # missing one. What it says is not sent.
        device = [
            SimDevice(unit, self._blocks(strict), action=self._on_request),
            SimDevice(0, SimData(0, datatype=DataType.REGISTERS)),
        ]
        if tcp is not None:
            self._server: Any = ModbusTcpServer(
                device, address=tcp, trace_packet=self._on_packet
            )
        else:
            bus = description.get("bus", {})
            self._server = ModbusSerialServer(
                device,
                framer=FramerType.RTU,
                port=port or "",
                baudrate=bus.get("baud", 9600),
                parity=bus.get("parity", "N"),
                stopbits=bus.get("stop", 1),
                trace_packet=self._on_packet,
            )

    def _blocks(self, strict: bool) -> list[SimData]:
        blocks: list[list[int]] = []
        signer = self.meter.signer
        signed = signer.registers() if signer else {}
        for address in sorted(self.meter.registers() | signed):
            if blocks and address - blocks[-1][1] <= (0 if strict else self._limit):
                blocks[-1][1] = address + 1
            else:
                blocks.append([address, address + 1])
        return [
            SimData(first, values=[0] * (end - first), datatype=DataType.REGISTERS)
            for first, end in blocks
        ]

    async def _on_request(
        self,
        function: int,
        start: int,
        address: int,
        count: int,
        current: list[int],
        written: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        self.meter.replies += 1
        if function not in self._functions:
            return ExcCodes.ILLEGAL_FUNCTION
        if count > self._limit:
            return ExcCodes.ILLEGAL_VALUE
        words = self.meter.registers()
        if self.meter.signer is not None:
            if written is not None:
                self.meter.signer.write(address, [int(word) for word in written])
            words = words | self.meter.signer.registers()
        for at, word in words.items():
            if 0 <= at - start < len(current):
                current[at - start] = word
        if address <= self.meter.energy_at() < address + count:
            self.meter.take("rollback")
        taken = self.meter.take("exception", "late")
        if taken is not None and taken[0] == "exception":
            return ExcCodes(taken[1].code)
        if taken is not None:
            await asyncio.sleep(taken[1].ms / 1000)
        return None

    def _on_packet(self, sending: bool, data: bytes) -> bytes:
        if not sending:
            return data
        if data[6 if self._tcp else 0] != self.unit:
            return b""
        taken = self.meter.take("silence", "crc", "truncate", "noise", "foreign")
        match taken and taken[0]:
            case "silence":
                return b""
            case "crc":
                # TCP has no CRC: there it is the transaction that does not fit
                at = 1 if self._tcp else len(data) - 1
                return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
            case "truncate":
                return data[: math.ceil(len(data) / 2)]
            case "noise":
                return b"\x00\xff" + data + b"\x55"
            case "foreign":
                if self._tcp:
                    return data[:6] + bytes([data[6] ^ 1]) + data[7:]
                other = bytes([data[0] ^ 1]) + data[1:-2]
                return other + FramerRTU.compute_CRC(other).to_bytes(2, "big")
        return data

    async def start(self) -> None:
        try:
            await self._server.serve_forever(background=True)
        except RuntimeError as e:  # pymodbus' own word for a port that cannot be opened
            raise OSError(str(e)) from e

    async def stop(self) -> None:
        await self._server.shutdown()


@contextmanager
def running(simulator_of: Callable[[], Simulator]) -> Iterator[Simulator]:
    """A simulator in a thread with an event loop of its own, for callers that have none."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="meter", daemon=True)
    thread.start()

    async def begin() -> Simulator:
        simulator = simulator_of()
        await simulator.start()
        return simulator

    try:
        simulator = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
        try:
            yield simulator
        finally:
            asyncio.run_coroutine_threadsafe(simulator.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
