"""The build: what goes onto a board, and that equal sources give equal bytes."""

import ast
import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from tools import build as builder
from tools import paths
from tools.build import BuildError

CONFIG = {"evses": [{"n": 1, "meter": "eastron_sdm630_v2"}]}


@pytest.fixture(scope="module")
def build() -> builder.Build:
    return builder.build("virtual", CONFIG)


def test_every_module_of_both_packages_is_in_the_slot(build: builder.Build) -> None:
    sources = [*paths.FIRMWARE.glob("wattlock/*.py"), *paths.FIRMWARE.glob("hal/*.py")]
    expected = {str(p.relative_to(paths.FIRMWARE).with_suffix(".mpy")) for p in sources}
    expected = expected - {"wattlock/native.mpy"} | {"wattlock/native.py", "start.mpy"}
    extra = {"meters/eastron_sdm630_v2.json", "manifest.json"}
    assert set(build.slot) == expected | extra


def test_only_configured_meters_are_deployed(build: builder.Build) -> None:
    assert [name for name in build.slot if name.startswith("meters/")] == [
        "meters/eastron_sdm630_v2.json"
    ]
    none = builder.build("virtual", {"evses": []})
    assert not [name for name in none.slot if name.startswith("meters/")]


def test_files_outside_the_slot_are_the_sources_themselves(build: builder.Build) -> None:
    assert build.root == {
        "/boot.py": (paths.FIRMWARE / "boot.py").read_bytes(),
        "/main.py": (paths.FIRMWARE / "main.py").read_bytes(),
        "/board.json": (paths.BOARDS / "virtual" / "board.json").read_bytes(),
    }


def test_manifest_names_version_and_digest_of_every_file(build: builder.Build) -> None:
    manifest = json.loads(build.slot["manifest.json"])
    others = {name: data for name, data in build.slot.items() if name != "manifest.json"}
    assert manifest["version"] == build.version == builder.version()
    assert manifest["files"] == {n: hashlib.sha256(d).hexdigest() for n, d in others.items()}


def test_the_same_sources_give_the_same_bytes(build: builder.Build) -> None:
    assert builder.build("virtual", CONFIG) == build


def test_no_path_of_this_machine_reaches_a_board(build: builder.Build) -> None:
    assert not [name for name, data in build.slot.items() if str(paths.ROOT).encode() in data]


def test_files_have_their_place_in_a_slot(build: builder.Build) -> None:
    files = build.files("b")
    assert files["/b/manifest.json"] == build.slot["manifest.json"]
    assert files["/main.py"] == build.root["/main.py"]


def test_the_vm_loads_what_was_compiled(micropython: Path, tmp_path: Path) -> None:
    """A module from the newest mpy-cross runs in the oldest MicroPython that is supported."""
    source = tmp_path / "probe.py"
    source.write_text("def f(x):\n    return x[5]\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "probe.mpy").write_bytes(builder.compile_mpy(source, "lib/probe.py"))
    code = "import sys; sys.path.insert(0, 'm'); import probe; probe.f([])"
    done = subprocess.run(
        [micropython, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert 'File "probe"' in done.stderr, done.stderr
    assert "in f" in done.stderr
    assert "IndexError" in done.stderr


@pytest.mark.parametrize(
    ("line", "folded"),
    [
        ("_A = 5", "_A = const(5)"),
        ("_A = -1", "_A = const(-1)"),
        ("_A = 0x1F  # a bit mask", "_A = const(0x1F)  # a bit mask"),
        ("_A = 60 * 60 * 1000", "_A = const(60 * 60 * 1000)"),
        ("_A = 1 << 30", "_A = const(1 << 30)"),
        # Nothing else is touched.
        ("_A = 2 + 3 * B", None),
        ("_A = 2 + 3 * f(1)", None),
        ("_A = 1, 2", None),
        ("_A = 1 if B else 2", None),
        ("_A = 16 + len", None),
        ("A = 5", None),
        ("    _A = 5", None),
        ('_A = "5"', None),
        ("_A = (5, 6)", None),
    ],
)
def test_private_integers_become_constants(line: str, folded: str | None) -> None:
    assert builder.fold_constants(f"{line}\n_Z = 0\n") == f"{folded or line}\n_Z = const(0)\n"


def test_unknown_board_names_the_known_ones() -> None:
    with pytest.raises(BuildError, match="'toaster' is unknown; use one of .*virtual"):
        builder.load_board("toaster")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ('{"board": "other"}', "'other' must be 'mine'")],
)
def test_bad_board_description_is_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "BOARDS", tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "board.json").write_text(text)
    with pytest.raises(BuildError, match=message):
        builder.load_board("mine")


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("x = 1\ndef f(:\n")
    with pytest.raises(BuildError, match=r"(?s)bad\.py.*line 2"):
        builder.compile_mpy(bad, "bad.py")


# --- short names


def test_private_names_are_short_and_never_two_for_one() -> None:
    names = builder.short_names()
    assert all(len(short) <= 3 for short in names.values())
    for path in builder.sources().values():
        own = names.keys() & set(re.findall(r"\b_[A-Za-z]\w*", path.read_text()))
        assert len({names[name] for name in own}) == len(own), path
    assert len(set(names.values())) < len(names) / 2


def test_a_class_and_its_base_in_another_module_do_not_share_a_short_name() -> None:
    """`Rs485` inherits from `Bus`: what either calls its own is an attribute of one object."""
    families = builder.families()
    assert {"hal/bus.py", "hal/rs485.py", "hal/tcp.py"} in families
    assert {"wattlock/registers.py", "wattlock/signing.py"} in families
    assert sorted(name for family in families for name in family) == sorted(builder.sources())
    names = builder.short_names()
    for family in families:
        text = "".join(builder.sources()[name].read_text() for name in family)
        own = names.keys() & set(re.findall(r"\b_[A-Za-z]\w*", text))
        assert len({names[name] for name in own}) == len(own), family


def test_what_is_renamed_and_what_is_not() -> None:
    short = builder.short_names()["_commit"]
    source = 'X = {"_commit": 1}  # _commit\nself._commit(_, commit, __commit__)\n'
    renamed = f'X = {{"_commit": 1}}  # _commit\nself.{short}(_, commit, __commit__)\n'
    assert builder.shorten(source) == renamed


def test_nothing_is_looked_up_by_a_name_that_is_not_there() -> None:
    """In quotes a name is not shortened, so none that is may be quoted."""
    names = set(builder.short_names())
    for path in builder.sources().values():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        said = {ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, kinds)}
        for node in nodes:
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and text not in said:
                assert not names & set(text.split(".")), (path, text)


def test_a_traceback_is_explained() -> None:
    short = builder.short_names()["_commit"]
    console = f'  File "app", line 1, in {short}\n  File "other.py", in {short}\n'
    assert builder.explain(console) == (
        f'  File "app", line 1, in _commit\n  File "other.py", in {short}\n'
    )


def test_one_object_has_no_two_names_that_are_short_alike() -> None:
    """Classes by their own texts: a class and the class of the firmware that it inherits from."""
    short = builder.short_names()
    names: dict[str, set[str]] = {}
    parents: dict[str, list[str]] = {}
    for path in builder.sources().values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                inside = list(ast.walk(node))
                own = {n.attr for n in inside if isinstance(n, ast.Attribute)}
                own |= {n.name for n in inside if isinstance(n, ast.FunctionDef)}
                names[node.name] = own & set(short)
                parents[node.name] = [ast.unparse(base) for base in node.bases]
    assert parents["Rs485"] == ["Bus"] and parents["Mqtt"] == ["Link"]
    for name, own in names.items():
        inherited = own.union(*(names[parent] for parent in parents[name] if parent in names))
        assert len({short[one] for one in inherited}) == len(inherited), name
