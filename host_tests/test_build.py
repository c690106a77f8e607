"""The build: what goes onto a board, and that equal sources give equal bytes."""

import hashlib
import json
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
