"""`make size`: where the Python heap of the running agent goes, and what is left of 96 KiB.

A plain ESP32 ends at about 112 KiB.

Four runs of the deployed files in the 32-bit VM, on the bench of `tools.rig`.

The first starts the agent as always, with room to spare: what is loaded, and how much it takes.
The second imports every module alone, the ones it needs before it, with a collection before and
after, and forgets what start.py forgets once the agent is built. What the agent's heap holds
beyond that are its objects. Names (interned strings) belong to all modules and their table grows
in leaps, so they have a line of their own, the few of umqtt included. Of
machine code (wattlock/native.py) the line has the objects only: the VM puts the code into pages of
its own, outside of the Python heap, and an ESP32 into executable memory of the chip's, which is
not counted here.

The third has the limit of `--heap`. It charges, sends what piled up while the link was down, and
gets a message of full size. After each the free bytes and the largest free block are told. The
limit is what a board's heap would be: the stubs and umqtt, which a board has in ROM, are added to
it (`STUBS_HEAP` of tools/virtual_board/vm.py).

A fourth has the same limit and begins with a journal of 1,000 records that nobody acknowledged,
written by the agent in `host_tests/backlog.py`: boot, coming online, and all of them told.

Limits: some hundred bytes of the measuring code count as stubs and objects. A unix VM has no
Wi-Fi and TLS buffers, which an ESP32 takes from another heap. The largest block is of the moment:
it tells whether the heap is torn to pieces, not how long it will hold.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools import build, paths, shrink
from tools.rig import KEY, MAX_MESSAGE, STATION, UNIX_MS, Rig, RigError
from tools.stage import StageError
from tools.virtual_board import vm

BUDGET = 56 * 1024
ROOMY = "400k"
# what a site may want more
FEATURES: dict[str, dict[str, Any]] = {
    "bookings (no slot yet)": {"bookings": True},
    "cards by the whitelist when offline": {"offline_cards": "whitelist"},
    "a meter that signs (BSM-WS36A)": {
        "evses": [{"n": 1, "meter": "bauer_bsm_ws36a", "bus": "rs485", "max_a": 32}]
    },
}
LIVE = 1000  # records that nobody acknowledged
FAULTS = 24  # records that pile up while the link is down: more than a message takes
WEIGH = """
def _used():
    gc.collect()
    return gc.mem_alloc()
def _code(name):
    before = _used()
    with open(name) as f:
        code = compile(f.read(), name, 'exec')
    return _used() - before
def _import(name):
    before = _used()
    __import__(name)
    size = _used() - before
    micropython.qstr_info()
    print('weighed', name, size)
for name in {stubs!r}:
    __import__(name)
print('weighed stubs', _used() - _code('/boot.py'))
micropython.qstr_info()
sys.path.insert(0, '/a')
for name in {modules!r}:
    _import(name)
print('weighed main', _code('/main.py'))
for told, name in {forgotten!r}:
    before = _used()
    path = name.split('.')
    owner = sys.modules[path[0]]
    for part in path[1:-1]:
        owner = getattr(owner, part, None)
    if name in sys.modules:
        delattr(owner, path[-1])
        del sys.modules[name]
    elif hasattr(owner, path[-1]):
        setattr(owner, path[-1], None)
    else:
        continue
    print('freed', told, before - _used())
"""


def forgotten() -> list[str]:
    """What start.py forgets once the agent is built: modules, and functions of classes."""
    tree = ast.parse((paths.FIRMWARE / "start.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        arg.value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "_forget"
        for arg in call.args
        if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
    ]


def imports(name: str) -> set[str]:
    """The firmware's modules that a module imports at its top, or tries to."""
    found: set[str] = set()
    nodes: list[ast.stmt] = []
    for node in ast.parse(source(name).read_text()).body:
        if isinstance(node, ast.Try):
            nodes += node.body + [line for handler in node.handlers for line in handler.body]
        else:
            nodes.append(node)
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, [name.split(".")[0], base]))
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {module for module in found if is_firmware(module)}


def source(name: str) -> Path:
    """The file of a module of the firmware."""
    path = paths.FIRMWARE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_firmware(name: str) -> bool:
    return name.split(".")[0] in shrink.PACKAGES and source(name).is_file()


def in_order(names: set[str]) -> list[str]:
    """`names`, each after what it imports."""
    ordered: list[str] = []

    def add(name: str) -> None:
        if name in names and name not in ordered:
            package = name.partition(".")[0]
            for needed in sorted({package, *imports(name)} - {name}):
                add(needed)
            ordered.append(name)

    for name in sorted(names):
        add(name)
    return ordered


def by_configuration(used: int) -> dict[str, int]:
    """What each part that a configuration brings adds to the `used` bytes of the plain agent."""
    added = {}
    for name, config in FEATURES.items():
        with Rig(heap=ROOMY, **config) as rig:
            rig.online()
            added[name] = rig.probe()["used"] - used
    return added


def bare_vm() -> int:
    """Bytes of heap that the VM takes for itself."""
    code = "import gc; gc.collect(); print(gc.mem_alloc())"
    done = subprocess.run([paths.VM, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


def read(console: str) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Bytes of each module without its names, of the names that it was the first to use, and of
    what was forgotten."""
    weights: dict[str, int] = {}
    names: dict[str, int] = {}
    freed: dict[str, int] = {}
    before = after = 0
    for line in console.splitlines():
        if found := re.search(r"n_total_bytes=(\d+)", line):
            before, after = after, int(found[1])
        elif found := re.match(r"weighed (\S+) (-?\d+)$", line):
            weights[found[1]] = int(found[2])
            if "." in found[1] or found[1] in shrink.PACKAGES:
                names[found[1]] = after - before
                weights[found[1]] -= names[found[1]]
        elif found := re.match(r"freed (\S+) (-?\d+)$", line):
            freed[found[1]] = int(found[2])
    return weights, names, freed


def weigh() -> dict[str, Any]:
    """The first two runs: every line of the resident heap."""
    with Rig(heap=ROOMY) as rig:
        rig.online()
        running = rig.probe()
    loaded = set(running["modules"]) - {"umqtt", "umqtt.simple", "__main__"}
    resident = {name for name in loaded if is_firmware(name)}
    gone = [name for name in forgotten() if is_firmware(name)]
    modules = ["umqtt.simple", *in_order(resident | set(gone))]
    setup = WEIGH.format(
        stubs=sorted(loaded - resident - set(shrink.PACKAGES)),
        modules=modules,
        forgotten=[(name, shrink.dotted(name)) for name in forgotten()],
    )
    with Rig(heap=ROOMY, setup=setup, start=False) as rig:
        rig.until("the weights", lambda: "no application here" in rig.board.console())
        weights, names, freed = read(rig.board.console())
    bare = bare_vm()
    ground = {
        "the VM itself": bare,
        "stubs of the virtual board": weights["stubs"] - bare,
        "umqtt.simple": weights["umqtt.simple"],
    }
    agent = {name: weights[name] for name in modules[1:] if name not in gone}
    for name in freed:
        if name not in gone:  # a function: what stays of its module is less
            agent[max((m for m in agent if name.startswith(m + ".")), key=len)] -= freed[name]
    agent["main.py"] = weights["main"]
    agent["names"] = sum(names.values())
    agent["objects"] = running["used"] - sum(ground.values()) - sum(agent.values())
    return {
        "used": running["used"], "not_on_a_board": ground, "start_up_only": freed, "agent": agent
    }  # fmt: skip


def live(heap: str) -> dict[str, Any]:
    """The second run: used, free and the largest free block, moment by moment."""
    moments: dict[str, Any] = {}
    result: dict[str, Any] = {"heap": vm.heap_bytes(heap), "moments": moments}
    result |= {"full_size_read": False, "restarts": None, "error": None}

    def probe(what: str) -> None:
        found = rig.probe()
        moments[what] = {name: found[name] for name in ("used", "free", "largest")}

    try:
        with Rig(heap=heap) as rig:
            rig.online()
            probe("connected, idle")
            rig.plug("C")
            rig.show_card()
            rig.charging()
            rig.pass_time(300)
            probe("charging for 5 minutes")
            rig.show_card()
            rig.stopped()
            rig.plug("A")
            probe("after the session")
            rig.gateway.largest = 0
            rig.board.net(wifi="down")
            for i in range(FAULTS):
                rig.pilot_fault(i % 2 == 0)
            count = len(rig.gateway.records)
            rig.board.net(wifi="ok")
            while len(rig.gateway.records) < count + FAULTS:
                rig.skip(5000)
            probe(f"after a message of {rig.gateway.largest} bytes up")
            result["full_size_read"] = rig.full_size()
            probe(f"after a message of {MAX_MESSAGE} bytes down")
            result["restarts"] = rig.board.boot() - 1
    except RigError as error:
        result["error"] = str(error)
    return result


def drained(heap: str) -> dict[str, Any]:
    """The fourth run: the heap from the boot until LIVE records are told. `whole`: each came once,
    in order, byte for byte."""
    begin_ms = UNIX_MS - 100_000_000  # their five hours end before
    script = paths.ROOT / "host_tests" / "backlog.py"
    done = subprocess.run(
        [sys.executable, script, STATION, KEY.hex(), str(begin_ms), str(LIVE)],
        env={"PYTHONPATH": f"{paths.FIRMWARE}:{paths.ROOT / 'host_tests'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    made = json.loads(done.stdout)
    journal = {name: bytes.fromhex(data) for name, data in made["files"].items()}
    found: dict[str, Any] = {"records": len(made["records"])}
    found |= {"bytes": sum(map(len, journal.values())), "moments": {}, "error": None}
    probes: list[dict[str, Any]] = []
    try:
        with Rig(heap=heap, journal=journal) as rig:
            rig.until("the first message", lambda: rig.gateway.headers)
            while len(rig.gateway.records) < found["records"] and rig.board.boot() == 1:
                probes.append(rig.probe())
            rig.until("a stop", lambda: rig.gateway.seen("stop", boot=2))
            rig.turns()
            last = rig.probe()
            told = [json.dumps(r, separators=(",", ":")) for r in rig.gateway.records]
            found["whole"] = told[: found["records"]] == made["records"]
            found["wrong"] = [
                r for r in rig.gateway.records[found["records"] :]
                if r["t"] in ("lost", "refused") or r.get("what") in ("supervisor", "journal_new")
            ]  # fmt: skip
            found["messages"] = len(rig.gateway.headers)
            found["restarts"] = rig.board.boot() - 1
    except RigError as error:
        found["error"] = str(error)
        return found
    probes.append(last)
    # between two messages the heap holds what stays, while one is made or read more
    rest = [p["used"] for p in probes]
    part = -(-len(rest) // 4)
    found["growth"] = min(rest[-part:]) - min(rest[:part])
    most = max(probes, key=lambda p: p["used"])
    for what, p in (("while they are told, at the most", most), ("all told", last)):
        found["moments"][what] = {name: p[name] for name in ("used", "free", "largest")}
    return found


def table(found: dict[str, Any]) -> str:
    """The report for people."""
    rows: list[tuple[str, str]] = []

    def section(title: str, lines: dict[str, int]) -> None:
        rows.extend([("", ""), (title, "bytes")])
        rows.extend((f"  {name}", f"{number:,}") for name, number in lines.items())

    section("not the agent's (a board has it in ROM, or not at all)", found["not_on_a_board"])
    section("start-up only, gone afterwards", found["start_up_only"])
    section("the running agent, in order of import", found["agent"])
    resident = found["resident"]
    over = resident - BUDGET
    rows += [
        ("resident", f"{resident:,}"),
        ("budget, 56 KiB", f"{BUDGET:,}"),
        ("over the budget by" if over > 0 else "left of the budget", f"{abs(over):,}"),
    ]
    text = "\n".join(f"{name:58} {number:>9}".rstrip() for name, number in rows)
    text += "\n\nby configuration, each alone" + " " * 35 + "bytes"
    for name, number in found["by_configuration"].items():
        text += f"\n  {name:56} {number:>+9,}"
    now = found["live"]
    text += f"\n\n{'live with ' + str(now['heap'] // 1024) + ' KiB':44}"
    text += f" {'used':>9} {'free':>9} {'largest':>9}\n"
    for what, moment in now["moments"].items():
        numbers = " ".join(f"{moment[name]:>9,}" for name in ("used", "free", "largest"))
        text += f"  {what:42} {numbers}\n"
    if now["error"]:
        text += f"\nThe agent did not live through this: {now['error']}\n"
    elif now["restarts"]:
        text += f"\nThe board restarted {now['restarts']} times\n"
    elif not now["full_size_read"]:
        text += f"  NOT read for want of heap: the message of {MAX_MESSAGE} bytes down\n"
    old = found["drained"]
    text += (
        f"\nbooted with {old['records']:,} records that nobody acknowledged ({old['bytes']:,} B)\n"
    )
    for what, moment in old["moments"].items():
        numbers = " ".join(f"{moment[name]:>9,}" for name in ("used", "free", "largest"))
        text += f"  {what:42} {numbers}\n"
    if old["error"] or old["restarts"] or old["wrong"] or not old["whole"]:
        text += f"  NOT whole: {old['error'] or old['wrong']}, {old.get('restarts')} restarts\n"
    else:
        text += f"  in {old['messages']} messages; what stays grew by {old['growth']:,} bytes\n"
    return text + f"  used includes what is not the agent's, {found['stubs_heap']:,} were added\n"


def measure(heap: str) -> dict[str, Any]:
    found = weigh()
    found["resident"] = sum(found["agent"].values())
    found["budget"] = BUDGET
    found["stubs_heap"] = vm.STUBS_HEAP
    found["by_configuration"] = by_configuration(found["used"])
    found["live"] = live(heap)
    found["drained"] = drained(heap)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="make size")
    parser.add_argument("--heap", default="96k", help="limit of the live run (96k)")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    args = parser.parse_args()
    try:
        found = measure(args.heap)
    except (RigError, StageError, build.BuildError, vm.VmError) as error:
        print(f"size: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1) if args.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
