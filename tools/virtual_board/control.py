"""The control port: one JSON object a line, one answer a line; `watch` streams.

An answer is {"ok": true, ...} or {"ok": false, "error": "..."}. EVSEs are numbered from 1, pins
are logical: 1 is active, whatever the level.

| do | fields | what happens |
|---|---|---|
| `get` | | `boot`, `power`, `t_ms`, `evses`: `pins` as the stubs and sensors see them, `agent` |
| `watch` | | first {"ok":true,"ev":"watch"}, then {"t_ms","boot","ev","evse","value"} for ever |
| `wait` | `evse`, `until` {name: value}, `timeout_s` 10 | pins, `boot`, `power`, agent fields |
| `car` | `evse`, `cp` A, B, C or F | the car's side of the control pilot |
| `token` | `evse`, `uid` | a card, held for a second and until it was read |
| `pulse` | `evse`, `count` | pulses of an S0 meter |
| `power` | `on` false, `when` now, flash_op:N or contactor_close:N, `torn` none or half | a cut |
| `power` | `on` true, `rtc` lost or kept | |
| `reset` | `cause` watchdog, soft, panic or hard | |
| `flash` | `fail` program, erase or read, `at` N | the N-th such operation from now returns EIO |
| `flash` | `fill` true or false; `stat` true | no room left; counters since power came |
| `fault` | `what` welded, stuck_open, lock_stuck, rfid_dead or estop, `evse`, `on` true | |
| `net` | `wifi` ok, down, password or silent; `lan` ok, unplugged, silent or broken | |
| `net` | `dns` ok, fail, slow or silent, `sntp` UDP port of a time server, 0: none | |
| `clock` | `unix_ms` or null (unset), `ppm` | the RTC and the crystal's error |
| `time` | `advance_ms` | the board's time skips ahead (the world's does not) |
| `stall` | | `ms`, `sync_ms`: the loop's longest turns since the last asking, as `wires` counts |
| `heap` | `collect` false | bytes `used` and `free` at the last feeding, or after a collection |

`flash_op` counts programs and erases: the N-th from now is not done (`torn` none) or half done,
and the board is off. `contactor_close` cuts right after the N-th closing. `agent` is the agent's
own word: the newest console line of this boot that is a JSON object with `evse` and `status`; null
without one. The firmware knows nothing of this port.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tools.virtual_board.board import RTC_START_MS, Board, Event, Refused, until

Request = dict[str, Any]
Answer = dict[str, Any]
_TURN_TIMEOUT_S = 30.0
_NET = {
    "wifi": ("ok", "down", "password", "silent"),  # the last: joined, and no address
    "lan": ("ok", "unplugged", "silent", "broken"),
    "dns": ("ok", "fail", "slow", "silent"),
}


class Control:
    def __init__(self, board: Board) -> None:
        self.board = board
        self._commands: dict[str, Callable[[Request], Awaitable[Answer]]] = {
            "get": self._get,
            "wait": self._wait,
            "car": self._car,
            "token": self._token,
            "pulse": self._pulse,
            "power": self._power,
            "reset": self._reset,
            "flash": self._flash,
            "fault": self._fault,
            "net": self._net,
            "clock": self._clock,
            "time": self._time,
            "stall": self._stall,
            "heap": self._heap,
        }

    async def serve(self, host: str, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._connection, host, port)

    async def _connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        end_watch: Callable[[], None] | None = None
        try:
            while line := await reader.readline():
                answer, watches = await self._line(line)
                if watches and not end_watch:
                    end_watch = self.board.watch(lambda event: _tell(writer, event))
                _tell(writer, answer)
                await writer.drain()
        except (ConnectionError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            if end_watch:
                end_watch()
            with contextlib.suppress(ConnectionError):
                writer.close()

    async def _line(self, line: bytes) -> tuple[Answer, bool]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise Refused("a line is one JSON object")
            what = request.get("do")
            if what == "watch":
                board = self.board
                return {
                    "ok": True, "t_ms": board.now_ms(), "boot": board.wires["boot"], "ev": "watch"
                }, True
            command = self._commands.get(str(what))
            if not command:
                known = ", ".join(["watch", *self._commands])
                raise Refused(f"do: {what!r}; {known}")
            return {"ok": True, **await command(request)}, False
        except json.JSONDecodeError as error:
            return {"ok": False, "error": f"not JSON: {error}"}, False
        except Refused as error:
            return {"ok": False, "error": str(error)}, False
        except (KeyError, TypeError, ValueError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}, False

    async def _get(self, request: Request) -> Answer:
        return self.board.picture()

    async def _wait(self, request: Request) -> Answer:
        until_what = request["until"]
        number = str(request.get("evse", 1))
        self.board.evse(number)
        deadline = time.monotonic() + float(request.get("timeout_s", 10))
        while True:
            picture = self.board.picture()
            evse = picture["evses"][number]
            seen = {"boot": picture["boot"], "power": picture["power"]}
            seen |= {**(evse["agent"] or {}), **evse["pins"]}
            if all(seen.get(name) == value for name, value in until_what.items()):
                return picture
            if time.monotonic() > deadline:
                now = {name: seen.get(name) for name in until_what}
                raise Refused(f"timeout: {until_what} did not come, it is {now}")
            await asyncio.sleep(0.01)

    async def _car(self, request: Request) -> Answer:
        self.board.car(request.get("evse", 1), request["cp"])
        return {}

    async def _token(self, request: Request) -> Answer:
        self.board.token(request.get("evse", 1), request["uid"])
        return {}

    async def _pulse(self, request: Request) -> Answer:
        self.board.pulse(request.get("evse", 1), int(request["count"]))
        return {}

    async def _power(self, request: Request) -> Answer:
        if request["on"]:
            rtc = _one_of(request, "rtc", "lost", "kept")
            self.board.power_on(rtc=rtc)
            return {}
        torn = _one_of(request, "torn", "none", "half")
        when = request.get("when", "now")
        if when == "now":
            await self.board.power_off()
        else:
            self.board.arm_power_cut(when, torn == "half")
        return {}

    async def _reset(self, request: Request) -> Answer:
        await self.board.reset(request["cause"])
        return {}

    async def _flash(self, request: Request) -> Answer:
        wires = self.board.wires
        if "fail" in request:
            at = int(request.get("at", 1))
            if at < 1:
                raise Refused(f"at: {at}; from 1")
            wires["fail_" + _one_of(request, "fail", "program", "erase", "read")] = at
        elif "fill" in request:
            await self._done_by_vm("fill", 1 if request["fill"] else 2)
        elif not request.get("stat"):
            raise Refused("flash: one of fail, fill and stat")
        names = ("programs", "erases", "program_bytes", "reads", "syncs")
        return {name: wires[name] for name in names}

    async def _done_by_vm(self, word: str, value: int) -> None:
        wires = self.board.wires
        wires[word] = value
        try:
            await asyncio.wait_for(until(lambda: not wires[word]), _TURN_TIMEOUT_S)
        except TimeoutError:
            wires[word] = 0
            raise Refused(f"{word}: no power, or the board never sleeps or polls") from None

    async def _fault(self, request: Request) -> Answer:
        self.board.fault(request["what"], request.get("evse", 1), bool(request.get("on", True)))
        return {}

    async def _net(self, request: Request) -> Answer:
        for name, modes in _NET.items():
            if name in request:
                self.board.wires[name] = modes.index(_one_of(request, name, *modes))
        if "sntp" in request:
            self.board.wires["sntp"] = int(request["sntp"])
        return {}

    async def _clock(self, request: Request) -> Answer:
        if "unix_ms" in request:
            unix_ms = request["unix_ms"]
            self.board.set_clock(RTC_START_MS if unix_ms is None else int(unix_ms))
        self.board.ppm = int(request.get("ppm", self.board.ppm))
        return {}

    async def _time(self, request: Request) -> Answer:
        self.board.advance(int(request["advance_ms"]))
        return {"t_ms": self.board.now_ms()}

    async def _stall(self, request: Request) -> Answer:
        wires = self.board.wires
        found = {"ms": wires["stall"] / 1000, "sync_ms": wires["stall_sync"] / 1000}
        wires["stall"] = wires["stall_sync"] = 0
        return found

    async def _heap(self, request: Request) -> Answer:
        if request.get("collect"):
            await self._done_by_vm("collect", 1)
        return {"used": self.board.wires["heap_used"], "free": self.board.wires["heap_free"]}


def _tell(writer: asyncio.StreamWriter, message: Answer | Event) -> None:
    writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")


def _one_of(request: Request, name: str, *values: str) -> str:
    value = request.get(name, values[0])
    if value not in values:
        raise Refused(f"{name}: {value!r}; {', '.join(values)}")
    return value
