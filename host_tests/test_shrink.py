"""What the build does to the sources: names that cost nothing, constants where they are used."""

import ast
import collections
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools import build, shrink

SHORT = shrink.short_names()
TREES = {n: shrink.inlined(path.read_text(), n) for n, path in shrink.sources().items()}


def shrunk(source: str, name: str = "wattlock/lock.py") -> str:
    return shrink.shrink(source, name)


# --- constants


@pytest.mark.parametrize(
    ("value", "used"),
    [
        ("5", "5"),
        ("-1", "-1"),
        ("0x1F  # a bit mask", "31"),
        ("60 * 60 * 1000", "3600000"),
        ("1 << 30", "1073741824"),
        ("'word'", "'word'"),
    ],
)
def test_a_constant_stands_where_it_is_used_and_nowhere_else(value: str, used: str) -> None:
    assert shrunk(f"_ZZ = {value}\nprint(_ZZ)\n") == f"print({used})"


@pytest.mark.parametrize(
    "value", ["1, 2", "1 if id else 2", "16 + len(id)", "'longer than a name'", "[]", "1 / 2"]
)
def test_nothing_else_is_taken_for_a_constant(value: str) -> None:
    assert shrunk(f"ZZ = {value}\nprint(ZZ)\n").count("ZZ") == 2


def test_a_name_that_changes_is_no_constant() -> None:
    assert shrunk("_ZZ = 1\ndef f():\n    global _ZZ\n    _ZZ = 2\n").count("ZZ") == 3
    assert shrunk("_ZZ = 1\ndef f(_ZZ):\n    print(_ZZ)\n").count("ZZ") == 3


def test_constants_of_other_modules_are_put_where_they_are_used() -> None:
    """Session's ENERGISED is 2 and WELL of lock is 0, whatever way they come."""
    source = (
        "from . import session\n"
        "from .lock import WELL, again\n"
        "print(session.ENERGISED, WELL, again)\n"
    )
    again = SHORT["again"]
    assert shrunk(source, "wattlock/evse.py") == (
        f"from .lock import {again}\nprint(2, 0, {again})"
    )


def test_a_module_handed_over_as_an_object_keeps_its_constants() -> None:
    """`hal` gets `wattlock.modbus` by its constructor: nobody can see there what it is."""
    source = shrink.sources()["wattlock/modbus.py"].read_text()
    kept = shrunk(source, "wattlock/modbus.py")
    for name in ("TIMEOUT", "RTU_DATA", "TCP_HEADER"):
        assert re.search(rf"^{SHORT.get(name, name)} = \d+$", kept, re.M), name


# --- names


def test_names_are_those_of_the_rom_and_never_two_for_one() -> None:
    """Nothing that a source says is the new name of something else: there it would be two."""
    rom = set(shrink.rom_names())
    assert set(SHORT.values()) <= rom
    assert not rom & set(SHORT)
    for family in shrink.families():
        text = "".join(shrink.sources()[name].read_text() for name in family)
        said = set(re.findall(r"\w+", text))
        own = said & set(SHORT)
        assert not said & {SHORT[name] for name in own}, family
    for name, path in shrink.sources().items():
        own = shrink.names_in(TREES[name]) & set(SHORT)
        assert len({SHORT[one] for one in own}) == len(own), path


def test_the_names_of_the_rom_take_no_room(micropython: Path) -> None:
    """Each as an attribute's name: the count of names in the heap stays. `MQTTClient` and the like
    are in the ROM of a board's image only."""
    mine = [name for name in shrink.rom_names() if name in set(SHORT.values())]
    text = "import micropython\nmicropython.qstr_info()\nclass A: pass\nmicropython.qstr_info()\n"
    text += "def f():\n" + "".join(f"    A.{name} = 1\n" for name in mine)
    text += "micropython.qstr_info()\n"
    done = subprocess.run([micropython, "-c", text], capture_output=True, text=True, check=True)
    counts = [int(n) for n in re.findall(r"n_qstr=(\d+)", done.stdout)]
    assert len(counts) == 3 and counts[2] - counts[1] <= 0, done.stdout


def test_a_class_and_its_base_in_another_module_do_not_share_a_name() -> None:
    """`Rs485` inherits from `Bus`: what either calls its own is an attribute of one object."""
    families = shrink.families()
    assert {"hal/bus.py", "hal/rs485.py", "hal/tcp.py"} in families
    assert {"wattlock/registers.py", "wattlock/signing.py"} in families
    assert sorted(name for family in families for name in family) == sorted(shrink.sources())
    for family in families:
        own = set().union(*(shrink.names_in(TREES[name]) for name in family)) & set(SHORT)
        assert len({SHORT[name] for name in own}) == len(own), family


def test_one_object_has_no_two_names_that_are_alike() -> None:
    """Classes by their own texts: a class and the class of the firmware that it inherits from."""
    names: dict[str, set[str]] = {}
    parents: dict[str, list[str]] = {}
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                inside = list(ast.walk(node))
                own = {n.attr for n in inside if isinstance(n, ast.Attribute)}
                own |= {n.name for n in inside if isinstance(n, ast.FunctionDef)}
                names[node.name] = own
                parents[node.name] = [ast.unparse(base) for base in node.bases]
    assert parents["Rs485"] == ["Bus"] and parents["Mqtt"] == ["Link"]
    for name, own in names.items():
        inherited = own.union(*(names[parent] for parent in parents[name] if parent in names))
        assert len({SHORT.get(one, one) for one in inherited}) == len(inherited), name


def test_what_is_set_from_outside_is_known_to_more_than_one_module() -> None:
    """A name of one module only is given anew in others, whose objects this one may hold."""
    uses = collections.Counter(n for tree in TREES.values() for n in shrink.names_in(tree))
    for name, tree in TREES.items():
        nodes = list(ast.walk(tree))
        known = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        known |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        known |= {node.attr for node in attributes if ast.unparse(node.value) == "self"}
        for node in attributes:
            if isinstance(node.ctx, ast.Store) and node.attr not in known and node.attr in SHORT:
                assert uses[node.attr] > 1, (name, node.attr)


def test_what_is_renamed_and_what_is_not() -> None:
    short = SHORT["rating_w"]
    source = "X = {'rating_w': 1}\nself.rating_w(_, 'rating_w', __rating_w__)\n"
    assert shrunk(source, "wattlock/evse.py") == (
        f"X = {{'rating_w': 1}}\nself.{short}(_, 'rating_w', __rating_w__)"
    )


def test_nothing_is_looked_up_by_a_name_that_is_not_there() -> None:
    """In quotes a name stays, so none that is renamed may be quoted; but for whole paths."""
    for name, tree in TREES.items():
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = list(ast.walk(tree))
        said = {ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, kinds)}
        for node in nodes:
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and text not in said:
                assert text not in SHORT, (name, text)


def test_what_is_renamed_is_ours() -> None:
    """Each was given by a source: whatever is only asked of others may be the hardware's."""
    given: set[str] = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                given.add(node.name)
            elif isinstance(node, ast.arg):
                given.add(node.arg)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                given.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                given.add(node.id)
            elif isinstance(node, ast.alias) and node.asname:
                given.add(node.asname)
    assert set(SHORT) <= given


def test_the_hardware_keeps_its_names() -> None:
    """Whatever is got from a module that is not ours, and every word that is said to it."""
    for name, tree in TREES.items():
        foreign = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        for node in ast.walk(tree):
            asked: Any = node.func if isinstance(node, ast.Call) else node
            if isinstance(asked, ast.Attribute) and ast.unparse(asked.value) in foreign:
                assert asked.attr not in SHORT, (name, asked.attr)
                for keyword in node.keywords if isinstance(node, ast.Call) else ():
                    assert keyword.arg not in SHORT, (name, keyword.arg)


def test_main_finds_what_it_calls() -> None:
    """main.py goes to the board as it is, and calls these."""
    for name in ("build", "run", "safe", "reset", "widen", "leave", "ConfigError"):
        assert name not in SHORT


def test_start_forgets_by_the_names_of_the_board() -> None:
    source = shrink.sources()["start.py"].read_text()
    assert '"wattlock.journal.Journal.open"' in source
    assert "'wattlock.journal.Journal.open'" not in shrunk(source, "start.py")
    assert repr(shrink.dotted("wattlock.journal.Journal.open")) in shrunk(source, "start.py")
    assert shrink.dotted("wattlock.journal.Journal.open").startswith("wattlock.journal.")


def test_machine_code_has_short_names_for_its_variables_too() -> None:
    source = shrink.sources()["wattlock/native.py"].read_text()
    text = build.build("virtual", {"evses": []}).slot["wattlock/native.py"].decode()
    assert "@micropython.viper" in text and "ptr8" in text
    assert "numerator" in source and "numerator" not in text


def test_a_traceback_is_explained() -> None:
    short = SHORT["lapse"]
    console = f'  File "evse", line 1, in {short}\n  File "other.py", in {short}\n'
    assert shrink.explain(console) == (
        f'  File "evse", line 1, in lapse\n  File "other.py", in {short}\n'
    )


def test_what_does_not_parse_is_for_the_compiler() -> None:
    with pytest.raises(SyntaxError):
        shrunk("def f(:\n")
