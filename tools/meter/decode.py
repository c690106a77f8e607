"""What a reply says, decoded by the firmware's own code: one JSON object of integers."""

from typing import Any

from .catalog import Description
from .wire import modbus, registers


def block_of(description: Description, name: str) -> tuple[registers.Block, registers.Meter]:
    """The read that holds one value, and a meter that asks for this value alone."""
    row = description["registers"][name]
    meter = registers.Meter(description | {"registers": {name: row}}, [name])
    meter.begin(True)
    block = meter.block
    assert block is not None
    return block, meter


def placed(description: Description, start: int) -> Description:
    """A SunSpec description with its meter model at register `start`."""
    rows = {
        name: [row[0] + start, *row[1:4], *(at + start for at in row[4:])]
        for name, row in description["registers"].items()
        if name != "serial"
    }
    return {k: v for k, v in description.items() if k != "sunspec"} | {"registers": rows}


def decode(description: Description, request: bytes, reply: bytes, tcp: bool) -> dict[str, Any]:
    """Every described value that the request covers, by its name; None where not available.

    {"exception": code} where the meter refused, {"error": word} where the reply must be dropped.
    ValueError where the request itself is none.
    """
    if "sunspec" in description:
        raise ValueError(f"{description['meter']}: say with --start where the model lies")
    head = 6 if tcp else 0
    if len(request) < head + 6 or not tcp and modbus.crc16(request, len(request)):
        raise ValueError(f"request {request.hex()}: too short, or its CRC is wrong")
    check = modbus.tcp_check if tcp else modbus.rtu_check
    outcome = check(reply, len(reply), request)
    if outcome & modbus.EXCEPTION:
        return {"exception": outcome & 0x7F}
    if outcome:
        return {"error": modbus.name(outcome)}
    function = request[head + 1]
    first = int.from_bytes(request[head + 2 : head + 4], "big")
    end = first + int.from_bytes(request[head + 4 : head + 6], "big")
    if function not in (3, 4):
        return {}
    found: dict[str, Any] = {}
    for name in description["registers"]:
        block, meter = block_of(description, name)
        if (
            block.function == function
            and first <= block.address
            and block.address + block.count <= end
        ):
            at = modbus.TCP_DATA if tcp else modbus.RTU_DATA
            meter.accept(reply, at + 2 * (block.address - first))
            meter.complete(0)
            found[name] = (meter.serial or None) if name == "serial" else meter.value(name)
    return found
