"""Flashing MicroPython: the esptool calls. What they do to a chip is not tested here."""

import json
from pathlib import Path

import pytest

from tools import flash, paths
from tools.deploy import Refused


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image, and two boards: `classic` has an ESP32, `lost` no known chip."""
    monkeypatch.setattr(paths, "BOARDS", tmp_path / "boards")
    for name, chip in (("classic", "esp32"), ("modern", "esp32c3"), ("lost", "z80")):
        (tmp_path / "boards" / name).mkdir(parents=True)
        description = {"board": name, "chip": chip}
        (tmp_path / "boards" / name / "board.json").write_text(json.dumps(description))
    path = tmp_path / "micropython.bin"
    path.write_bytes(b"image")
    return path


# Offsets of the first-stage loader: Espressif's "Boot loader" chapters for each chip.
@pytest.mark.parametrize(
    ("board", "chip", "offset"), [("classic", "esp32", "0x1000"), ("modern", "esp32c3", "0x0")]
)
def test_the_flash_is_erased_and_the_image_goes_where_the_chip_looks(
    image: Path, board: str, chip: str, offset: str
) -> None:
    start = ["esptool", "--chip", chip, "--port", "/dev/x", "--baud", "460800"]
    assert flash.commands(["esptool"], "/dev/x", board, image) == [
        [*start, "erase_flash"],
        [*start, "write_flash", offset, str(image)],
    ]


def test_an_unknown_chip_is_named(image: Path) -> None:
    with pytest.raises(Refused, match="lost has chip 'z80'.*one of esp32"):
        flash.commands([], "/dev/x", "lost", image)


def test_a_missing_image_is_named(image: Path) -> None:
    with pytest.raises(Refused, match="IMAGE: .* is no file; download MicroPython 1.25"):
        flash.commands([], "/dev/x", "classic", image.with_name("absent.bin"))
