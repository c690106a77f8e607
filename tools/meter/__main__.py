"""python -m tools.meter: list, read, scan, decode, simulate. `--help` on each says the rest."""

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from . import catalog


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT")
    return host, int(port)


def simulate(args: argparse.Namespace) -> int:
    from . import control
    from .ptypair import PtyPair
    from .simulator import SimulatedMeter, Simulator

    description = catalog.load(args.meter)
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.meter", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

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

    args = parser.parse_args()
    try:
        return args.run(args)
    except (LookupError, ValueError, OSError) as e:
        print(f"meter: {e.args[0] if isinstance(e, LookupError) else e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
