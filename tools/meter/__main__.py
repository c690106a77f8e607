"""python -m tools.meter: list, read, scan, decode, simulate, verify. Each says more on --help."""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from . import catalog


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT")
    return host, int(port)


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no hex; write 01 04 00 48 ...") from None


def _units(text: str) -> range:
    first, _, last = text.partition("-")
    if not first.isdigit() or not (last or first).isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} are no addresses; write 5 or 1-10")
    units = range(int(first), int(last or first) + 1)
    if not units or units[0] < 1 or units[-1] > 247:
        raise argparse.ArgumentTypeError(f"{text!r}: addresses are 1 to 247, the lower one first")
    return units


def show(args: argparse.Namespace) -> int:
    """`list`: what is known, and how sure."""
    for key in catalog.known():
        description = catalog.load(key)
        if args.json:
            chosen = ("meter", "name", "confidence", "bus", "unverified", "sources")
            print(json.dumps({k: description[k] for k in chosen if k in description}))
            continue
        bus = description["bus"]
        wire = "tcp"
        if "sunspec" in description:
            bus = {"kind": "any"}
            wire = "discovered"
        if bus["kind"] == "rtu":
            wire = f"{bus.get('baud', '?')} 8{bus.get('parity', '?')}{bus.get('stop', '?')}"
        doubts = [f"{name} unverified" for name in description.get("unverified", [])]
        if bus.get("confidence") == "unverified":
            doubts.append("bus defaults unverified")
        print(
            f"{key:24} {description['confidence']:8} {wire:11} {description['name']}"
            + (f"  ({', '.join(doubts)})" if doubts else "")
        )
    return 0


def decode(args: argparse.Namespace) -> int:
    from .decode import decode, placed

    generic = {"meter": "generic", "registers": {}}
    description = generic if args.meter == "generic" else catalog.load(args.meter)
    if args.start is not None:
        description = placed(description, args.start)
    print(json.dumps(decode(description, args.request, args.response, args.tcp)))
    return 0


def _settings(args: argparse.Namespace, bus: dict) -> tuple[int, str, int]:
    """Baud, parity and stop bits: as told, else as the meter leaves its maker."""
    return (
        args.baud or bus.get("baud", 9600),
        args.parity or bus.get("parity", "N"),
        args.stop or bus.get("stop", 1),
    )


def read(args: argparse.Namespace) -> int:
    from . import wire

    description = catalog.load(args.meter)
    names = [name for name in description["registers"] if name != "serial"]
    meter = wire.registers.Meter(description, names)
    if args.tcp is not None:
        bus: wire.Bus = wire.tcp_bus(*args.tcp)
    else:
        bus = wire.serial_bus(args.port, *_settings(args, description["bus"]))
    bus.add(meter, args.unit or description["bus"].get("unit", 1), args.every_ms)
    while True:
        polls = meter.readings + meter.failed
        meter.demand()
        _progress("asking...")
        wire.poll(bus, lambda n=polls: meter.readings + meter.failed != n, args.timeout_s)
        _progress("")
        if not meter.readings or meter.failed:
            print(
                f"no reading: {wire.modbus.name(meter.error or wire.modbus.TIMEOUT)}; check the "
                "wiring (A and B), the slave address and baud, parity, stop bits",
                file=sys.stderr,
            )
            if not args.watch:
                return 1
        else:
            values = {"serial": meter.serial} if meter.serial else {}
            values |= {name: meter.value(name) for name in names}
            if args.json:
                print(json.dumps(values), flush=True)
            else:
                for name, value in values.items():
                    print(f"{name:20} {'not available' if value is None else value}")
        if not args.watch:
            return 0
        wire.poll(bus, lambda: False, args.every_ms / 1000)


def _progress(text: str) -> None:
    """A line that the next one replaces; only where a person looks."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def scan(args: argparse.Namespace) -> int:
    from . import scan

    units = args.units
    tries: list[dict[str, Any]] = [{}]
    if args.tcp is None:
        told = {k: v for k in ("baud", "parity", "stop") if (v := getattr(args, k)) is not None}
        tries = []
        for key in catalog.known():
            bus = catalog.load(key)["bus"]
            usual = {k: bus[k] for k in ("baud", "parity", "stop") if k in bus} | told
            if len(usual) == 3 and usual not in tries:
                tries.append(usual)
        tries.sort(key=lambda usual: (usual["baud"] != 9600, usual["baud"], usual["parity"]))
    found = 0
    for wire in tries:
        if args.tcp is not None:
            line = scan.TcpLine(*args.tcp, args.timeout_s)
        else:
            line = scan.SerialLine(args.port, **wire, timeout_s=args.timeout_s)
        for unit in units:
            _progress(f"{' '.join(map(str, wire.values()))} unit {unit} of {units[-1]}")
            if not scan.answers(line, unit):
                continue
            found += 1
            kinds = list(scan.identify(line, unit)) or [(None, "unknown", None)]
            _progress("")
            for key, sure, number in kinds:
                about = {"unit": unit, **wire, "meter": key, "sure": sure, "serial": number}
                print(json.dumps(about), flush=True)
        line.close()
        if found and not args.all:
            break
    _progress("")
    if not found:
        print("nobody answers: check A and B, the supply, and the settings", file=sys.stderr)
    return 0 if found else 1


def simulate(args: argparse.Namespace) -> int:
    from . import control
    from .ptypair import PtyPair
    from .simulator import SimulatedMeter, Simulator

    description = catalog.load(args.meter)
    if args.pty is not None:  # which has no parity, and some systems refuse to set one
        description = description | {"bus": description["bus"] | {"parity": "N"}}
    meter = SimulatedMeter(
        description,
        start_wh=args.start_wh,
        serial=args.serial,
        load_w=args.load_w,
        speed=args.speed,
    )

    async def play(port: str | None, ready: dict) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        simulator = Simulator(
            meter, port=port, tcp=args.tcp, unit=args.unit, strict=args.strict
        )
        await simulator.start()
        server = None
        if args.control is not None:
            server, number = await control.serve(meter, *args.control)
            ready["control"] = f"{args.control[0]}:{number}"
        print(json.dumps(ready), flush=True)
        await stop.wait()
        if server is not None:
            server.close()
        await simulator.stop()

    ready = {"ready": True, "meter": args.meter, "unit": args.unit}
    if args.tcp is not None:
        asyncio.run(play(None, ready | {"tcp": f"{args.tcp[0]}:{args.tcp[1]}"}))
    elif args.pty is not None:
        with PtyPair(args.pty) as cable:
            asyncio.run(play(cable.b, ready | {"pty": str(args.pty)}))
    else:
        asyncio.run(play(args.port, ready | {"port": args.port}))
    return 0


def verify(args: argparse.Namespace) -> int:
    """0: all valid; 1: one is invalid; 3: none is invalid, and one cannot be told."""
    from . import verify

    key = None
    if args.key is not None:
        path = Path(args.key)
        key = verify.key_of(path.read_text() if path.is_file() else args.key)
    told = set()
    for found in verify.records(args.file.read_bytes()):
        word, why = verify.verdict(found.text, key or found.key)
        told.add(word)
        origin = "given" if key else "from the same file" if found.key else "none"
        about = {"verdict": word, "why": why, "key": origin}
        about |= {"nature": found.nature, "session": found.session}
        print(json.dumps({k: v for k, v in about.items() if v} | verify.reading(found.text)))
    return 1 if verify.INVALID in told else 3 if verify.UNKNOWN in told else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.meter", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    add = commands.add_parser("list", help="what is known of which meter, and how sure")
    add.add_argument("--json", action="store_true", help="one JSON object a line, with sources")
    add.set_defaults(run=show)

    add = commands.add_parser("decode", help="what a reply says, as one JSON object of integers")
    add.add_argument("--meter", required=True, metavar="KEY", help="see `list`; generic: framing")
    add.add_argument("--request", required=True, type=_hex, metavar="HEX")
    add.add_argument("--response", required=True, type=_hex, metavar="HEX")
    add.add_argument("--start", type=int, help="register where a SunSpec meter model starts")
    add.add_argument("--tcp", action="store_true", help="with MBAP header, without CRC")
    add.set_defaults(run=decode)

    for name, run, about in (
        ("read", read, "read a meter: a table, or JSON"),
        ("scan", scan, "find slaves and say which meter they look like"),
    ):
        add = commands.add_parser(name, help=about)
        wire = add.add_mutually_exclusive_group(required=True)
        wire.add_argument("--port", help="serial port")
        wire.add_argument("--tcp", type=_address, metavar="HOST:PORT", help="Modbus TCP")
        add.add_argument("--baud", type=int, help="default: as the meter leaves its maker")
        add.add_argument("--parity", choices=("N", "E", "O"))
        add.add_argument("--stop", type=int, choices=(1, 2))
        add.set_defaults(run=run)
        if name == "read":
            add.add_argument("--meter", required=True, metavar="KEY", help="see `list`")
            add.add_argument("--unit", type=int, help="slave address")
            add.add_argument("--json", action="store_true", help="one JSON object a reading")
            add.add_argument("--watch", action="store_true", help="until interrupted")
            add.add_argument("--every-ms", type=int, default=1000)
            add.add_argument("--timeout-s", type=float, default=10)
        else:
            add.add_argument("--units", type=_units, default="1-247", help="addresses, e.g. 1-10")
            add.add_argument("--all", action="store_true", help="all settings, not the first hit")
            add.add_argument("--timeout-s", type=float, default=0.2)

    add = commands.add_parser("simulate", help="play a meter, with a load and faults")
    add.add_argument("--meter", required=True, metavar="KEY", help="see `list`")
    wire = add.add_mutually_exclusive_group(required=True)
    wire.add_argument("--port", help="serial port to answer on")
    wire.add_argument("--pty", type=Path, metavar="LINK", help="make a cable; LINK: its end")
    wire.add_argument("--tcp", type=_address, metavar="HOST:PORT", help="answer Modbus TCP")
    add.add_argument("--unit", type=int, default=1, help="slave address (default 1)")
    add.add_argument("--control", type=_address, metavar="HOST:PORT", help="port 0: any free one")
    add.add_argument("--start-wh", type=int, default=0, help="energy register at the start, in Wh")
    add.add_argument("--serial", default="12345678", help="serial number (default 12345678)")
    add.add_argument("--load-w", type=int, default=0, help="load at the start, in W")
    add.add_argument("--speed", type=int, default=1, help="meter's clock, times real time")
    add.add_argument("--strict", action="store_true", help="undescribed registers: exception 2")
    add.set_defaults(run=simulate)

    add = commands.add_parser("verify", help="is an OCMF record what the meter signed?")
    add.add_argument("file", type=Path, metavar="FILE", help="a record, an OCPI CDR, S.A.F.E. XML")
    add.add_argument("--key", help="the meter's public key: hex, base64, or a file with either")
    add.set_defaults(run=verify)

    args = parser.parse_args()
    try:
        return args.run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (LookupError, ValueError, OSError) as e:
        print(f"meter: {e.args[0] if isinstance(e, LookupError) else e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
