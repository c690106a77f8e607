"""The whitelist on real LittleFS in the VM: what it is there after a boot, and what it erases."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hal.shelf import Shelf
from wattlock.errors import StorageError

from tools import paths


def test_erases_of_two_thousand_cards(micropython: Path) -> None:
    """Bounds: an erase a part and the new list's 12 blocks; a turn of two erases is 90 ms."""
    done = subprocess.run(
        [micropython, "-X", "heapsize=8m", paths.ROOT / "host_tests" / "vm_whitelist.py"],
        env={"MICROPYPATH": str(paths.FIRMWARE)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr
    full, one, many = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    assert full["rows"] == 2000 and full["erases"] <= 70
    assert one["rows"] == 1999 and one["erases"] <= 14
    assert many["rows"] == 1999 and many["erases"] <= 20
    assert max(full["worst"], one["worst"], many["worst"]) <= 2


def test_a_file_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path / "tokens"))
    shelf.create("list", b"old")
    shelf.begin()
    shelf.put(b"new")
    assert shelf.read("list", 0, 9) == b"old"
    shelf.begin()  # given up, and begun anew
    shelf.put(b"newer")
    shelf.finish("list")
    assert shelf.read("list", 0, 9) == b"newer" and "new" not in shelf.names()


def test_a_full_file_system_is_told(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path / "tokens"))
    shelf.begin()
    shelf.put(b"new")
    shelf._written += 1  # LittleFS may drop what has no room without a word
    with pytest.raises(StorageError, match="did not get there"):
        shelf.finish("list")
    assert shelf.names() == ["new"]
