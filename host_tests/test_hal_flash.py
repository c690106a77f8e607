"""The journal's files: over a folder here, over real LittleFS in the VM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hal.flash import Flash
from wattlock.errors import StorageError

from tools import paths


@pytest.mark.parametrize("what", ["basics", "full", "cuts"])
def test_on_littlefs(micropython: Path, what: str) -> None:
    done = subprocess.run(
        [micropython, "-X", "heapsize=4m", paths.ROOT / "host_tests" / "vm_flash.py", what],
        env={"MICROPYPATH": str(paths.FIRMWARE)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr
    if what == "cuts":
        assert int(done.stdout.split()[1]) > 1500


@pytest.fixture
def store(tmp_path: Path) -> Flash:
    return Flash(str(tmp_path / "journal"))


def test_what_the_journal_needs(store: Flash, tmp_path: Path) -> None:
    assert store.names() == []
    store.create("00000001.j", b"head")
    store.append("00000001.j", b"+one")
    assert store.names() == ["00000001.j"] and store.size("00000001.j") == 8
    assert store.read("00000001.j", 4, 100) == b"+one"
    assert (tmp_path / "journal" / "00000001.j").read_bytes() == b"head+one"
    store.remove("00000001.j")
    assert store.names() == []


def test_an_existing_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    Flash(str(tmp_path / "j")).create("a", b"1")
    assert Flash(str(tmp_path / "j")).read("a", 0, 9) == b"1"


def test_create_is_all_or_nothing(
    store: Flash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("a", b"old")

    def no_rename(*names: str) -> None:
        raise OSError(5, "as told")

    monkeypatch.setattr(os, "rename", no_rename)
    with pytest.raises(StorageError):
        store.create("a", b"new and longer")
    assert (tmp_path / "journal" / "a").read_bytes() == b"old"


def test_bytes_that_did_not_get_there_are_noticed(
    store: Flash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full LittleFS may drop what was written without a word."""
    store.create("a", b"12345")
    real = os.stat

    def short(path: str) -> tuple[int | float, ...]:
        row = list(real(path))
        row[6] -= 1
        return tuple(row)

    monkeypatch.setattr(os, "stat", short)
    with pytest.raises(StorageError, match="did not get there"):
        store.append("a", b"678")


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.read("gone", 0, 1),
        lambda store: store.size("gone"),
        lambda store: store.remove("gone"),
        lambda store: store.append("no/such", b"x"),
        lambda store: store.create("no/such", b"x"),
    ],
)
def test_every_failure_is_a_storage_error_that_names_the_file(store: Flash, act) -> None:
    with pytest.raises(StorageError, match=r"gone|no/such"):
        act(store)


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = Flash(str(tmp_path / "file" / "journal"))
    with pytest.raises(StorageError):
        store.names()
    with pytest.raises(StorageError):
        store.create("a", b"x")
