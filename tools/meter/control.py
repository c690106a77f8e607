"""The control port of a simulated meter: one JSON object a line, one answer a line.

{"do":"get"}                                   what the registers show
{"do":"load","w":11000}                        the car (negative: it feeds back)
{"do":"set","wh":1000,"serial":"87654321"}     another register, another meter
{"do":"fault","kind":"crc","on":true,"count":3}   see simulator.py; "code", "ms", "wh" as they fit
{"do":"speed","x":60}                          the meter's clock; 0 stops it
{"do":"advance","ms":1000}                     let its time pass at once
"""

import asyncio
import json
from typing import Any

from .simulator import SimulatedMeter


def obey(meter: SimulatedMeter, command: dict[str, Any]) -> dict[str, Any]:
    """Carry out one command; the answer says {"ok": false, "error": ...} where it could not."""
    try:
        match command.get("do"):
            case "get":
                pass
            case "load":
                meter.set_load(int(command["w"]))
            case "set":
                if "wh" in command:
                    meter.set_energy(int(command["wh"]))
                if "serial" in command:
                    meter.serial = str(command["serial"])
            case "fault":
                known = {"count", "code", "ms", "wh"}
                options = {k: int(v) for k, v in command.items() if k in known}
                meter.set_fault(str(command["kind"]), bool(command.get("on", True)), **options)
            case "speed":
                meter.set_speed(int(command["x"]))
            case "advance":
                meter.settle()
                meter.advance(int(command["ms"]))
            case other:
                verbs = "get, load, set, fault, speed, advance"
                raise ValueError(f"do {other!r} is none of {verbs}")
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        return {"ok": False, "error": f"{type(e).__name__}: {e}"}
    return {
        "ok": True,
        "wh": meter.shown_wh(),
        "export_wh": meter.shown_wh("energy_export_wh"),
        "w": meter.load_w,
        "serial": meter.serial,
        "speed": meter.speed,
        "faults": sorted(meter.faults),
        "replies": meter.replies,
    }


async def serve(meter: SimulatedMeter, host: str, port: int) -> tuple[asyncio.Server, int]:
    """Open the control port (0: any free one); the server and its port."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    command = json.loads(line)
                    if not isinstance(command, dict):
                        raise ValueError("a command is one JSON object a line")
                    answer = obey(meter, command)
                except ValueError as e:
                    answer = {"ok": False, "error": str(e)}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, host, port)
    return server, server.sockets[0].getsockname()[1]
