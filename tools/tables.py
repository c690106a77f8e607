"""The gate's table and the state machines, from the code into the firmware's README.

    python -m tools.tables            # writes firmware/README.md
    python -m tools.tables --check    # exit code 1 where it does not agree

Each noun has its table in its docstring, which costs a board nothing: a row a state, a column an
event, in the cell the next state, empty where nothing happens. `machine` reads it; the tests hold
the noun's code against it, cell by cell; here it becomes a diagram.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
from types import ModuleType

from tools import paths

sys.path.insert(0, str(paths.ROOT / "firmware"))

from wattlock import gate, lights, lock, reservation, session

README = paths.ROOT / "firmware" / "README.md"
Machine = dict[str, dict[str, str]]  # state -> event -> next state, "" for nothing


def rows(noun: ModuleType) -> list[list[str]]:
    """The table in a docstring: cells of its header and of each row."""
    found = []
    for line in inspect.getdoc(noun).splitlines():  # type: ignore[union-attr]
        if "|" in line and not set(line) <= set(" -+|"):
            found.append([cell.strip() for cell in line.split("|")])
    assert len({len(row) for row in found}) == 1, f"{noun.__name__}: a row has too few cells"
    return found


def machine(noun: ModuleType) -> Machine:
    header, *body = rows(noun)
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in body}


# --- what is written


def gate_table() -> str:
    """Every state, right and source, as the gate answers."""
    sources = list(gate.SOURCES)
    lines = ["| EVSE | right | " + " | ".join(sources) + " |", "|---" * (2 + len(sources)) + "|"]
    for state in ("FREE", "HELD", "SLOT", "BUSY"):
        for right in ("NONE", "TOKEN", "GROUP", "RESERVATION", "BOOKING", "SESSION"):
            answers = (
                gate.refusal(getattr(gate, state), getattr(gate, right), source)
                for source in range(len(sources))
            )
            cells = [why or "**allow**" for why in answers]
            lines.append(f"| {state} | {right} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def diagram(known: Machine) -> str:
    """A Mermaid state diagram; NONE is where a machine begins and ends. Events that lead the same
    way share an arrow."""
    lines = ["stateDiagram-v2"]
    for state, events in known.items():
        ways: dict[str, list[str]] = {}
        for event, after in events.items():
            if after:
                ways.setdefault(after, []).append(event)
        for after, names in ways.items():
            begin, end = ("[*]" if name == "NONE" else name for name in (state, after))
            lines.append(f"    {begin} --> {end}: {', '.join(names)}")
    return mermaid(lines)


def drives() -> str:
    """Contactor and lock: what becomes of each wanted and observed value."""
    lines = ["stateDiagram-v2"]
    for wanted, observed, soon, later in rows(lock)[1:]:
        seen = f"wanted {wanted}, observed {observed}"
        if soon == later:
            lines.append(f"    wait --> {soon}: {seen}")
        else:
            lines.append(f"    well --> {soon}: {seen}")
            lines.append(f"    {soon} --> {later.replace(' ', '_')}: {seen}, too long")
    return mermaid(lines)


def patterns() -> str:
    """What the indicator shows, the first row that holds."""
    header, *body = rows(lights)
    body = [[row[0].lower().replace("_", " "), *row[1:]] for row in body]
    lines = ["| " + " | ".join(row) + " |" for row in (["", *header[1:]], *body)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def mermaid(lines: list[str]) -> str:
    return "```mermaid\n" + "\n".join(lines) + "\n```"


BLOCKS: dict[str, Callable[[], str]] = {
    "gate": gate_table,
    "session": lambda: diagram(machine(session)),
    "reservation": lambda: diagram(machine(reservation)),
    "lock": drives,
    "lights": patterns,
}


def render(text: str) -> str:
    """The document with each block between `<!-- NAME -->` and `<!-- end -->` made anew."""
    for name, make in BLOCKS.items():
        mark = f"<!-- {name} -->\n"
        assert text.count(mark) == 1, f"{README.name}: {mark.strip()} is to stand there once"
        before, _, rest = text.partition(mark)
        text = f"{before}{mark}{make()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    check = parser.parse_args().check
    old = README.read_text()
    new = render(old)
    if check and new != old:
        print(f"{README.name}: run `python -m tools.tables`", file=sys.stderr)
        return 1
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
