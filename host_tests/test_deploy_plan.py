"""Deploy decides before it writes: what to copy, what to refuse. No board is needed for that, nor
for what a console can say instead of a prompt."""

import os
import pty
import threading
import tty

import pytest

from tools import deploy
from tools.build import Build, digest
from tools.deploy import BLOCK, Board, DeployFailed, Facts, Plan, State, plan, unsuitable

SLOT = {"wattlock/app.mpy": b"app", "hal/board.mpy": b"board", "manifest.json": b"{}"}
ROOT = {"/main.py": b"main", "/config.json": b"config"}
BUILD = Build("1.2.3", 6, {"/main.py": b"main"}, SLOT)
BOARD = {"board": "virtual", "machine": "Wattlock virtual board", "micropython": [1, 25]}


def state(slot: str, **folders: dict[str, bytes]) -> State:
    """A board's files: keyword a, b: slots; root: files outside."""
    files = {}
    for folder, content in folders.items():
        for name, data in content.items():
            path = name if folder == "root" else f"/{folder}/{name}"
            files[path] = (digest(data), len(data))
    return State(slot, files)


def test_a_new_board_gets_everything_in_slot_a() -> None:
    todo = plan(BUILD, ROOT, State())
    assert todo.slot == "a"
    assert sorted(todo.send) == ["/a/hal/board.mpy", "/a/manifest.json", "/a/wattlock/app.mpy"]
    assert todo.replace == ["/main.py", "/config.json"]
    assert (todo.clone, todo.delete) == ([], [])
    # Three files of one block each, and one block for a file beside the old one.
    assert todo.size == 4 * BLOCK


def test_the_same_again_does_nothing() -> None:
    assert plan(BUILD, ROOT, state("b", b=SLOT, root=ROOT)) == Plan(slot="b")


def test_a_changed_module_goes_to_the_other_slot_and_the_rest_is_taken_over() -> None:
    old = SLOT | {"wattlock/app.mpy": b"old"}
    todo = plan(BUILD, ROOT, state("a", a=old, root=ROOT))
    assert todo.slot == "b"
    assert todo.send == ["/b/wattlock/app.mpy"]
    assert sorted(todo.clone) == [
        ("/a/hal/board.mpy", "/b/hal/board.mpy"),
        ("/a/manifest.json", "/b/manifest.json"),
    ]


def test_what_the_inactive_slot_has_already_is_kept() -> None:
    old = SLOT | {"wattlock/app.mpy": b"old"}
    todo = plan(BUILD, ROOT, state("b", b=old, a=SLOT, root=ROOT))
    assert (todo.slot, todo.send, todo.clone, todo.delete) == ("a", [], [], [])


def test_files_of_an_older_release_are_deleted_and_never_in_the_active_slot() -> None:
    stale = SLOT | {"wattlock/gone.mpy": b"gone"}
    todo = plan(BUILD, ROOT, state("a", a=stale, b=stale, root=ROOT))
    assert (todo.slot, todo.delete) == ("b", ["/b/wattlock/gone.mpy"])
    assert todo.size == -BLOCK


def test_only_the_configuration_changed() -> None:
    found = state("a", a=SLOT, root=ROOT | {"/config.json": b"older"})
    assert plan(BUILD, ROOT, found) == Plan(slot="a", replace=["/config.json"], size=BLOCK)


def test_a_torn_copy_in_the_inactive_slot_is_sent_again() -> None:
    torn = SLOT | {"hal/board.mpy": b"boa"}
    todo = plan(BUILD, ROOT, state("", a=torn, root=ROOT))
    assert (todo.slot, todo.send) == ("a", ["/a/hal/board.mpy"])


def test_sizes_count_whole_blocks() -> None:
    big = Build("1", 6, {}, {"x": b"x" * (BLOCK + 1)})
    assert plan(big, {}, State()).size == 2 * BLOCK
    assert plan(big, {}, state("a", b={"x": b"x" * (3 * BLOCK)})).size == -BLOCK


GOOD = Facts("micropython", (1, 25), "Wattlock virtual board with unix", 6, 1 << 20)


def test_a_suitable_board_passes() -> None:
    assert unsuitable(GOOD, BOARD, BUILD, "/dev/x") == ""


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"version": (1, 24)}, ["micropython 1.24", "1.25 or newer is needed", "make flash"]),
        ({"name": "circuitpython", "version": (9, 2)}, ["circuitpython 9.2", "make flash"]),
        ({"machine": "Toaster"}, ["'Toaster'", "is for 'Wattlock virtual board'", "boards/NAME"]),
        ({"bytecode": 5}, ["version 5", "version 6", "pyproject.toml"]),
    ],
)
def test_refusals_say_found_needed_and_remedy(changed: dict, parts: list[str]) -> None:
    facts = Facts(**(vars(GOOD) | changed))
    text = unsuitable(facts, BOARD, BUILD, "/dev/x")
    assert [part for part in ["/dev/x", *parts] if part not in text] == []


def test_a_board_may_need_a_newer_release_than_the_firmware_does() -> None:
    assert "1.27 or newer" in unsuitable(GOOD, BOARD | {"micropython": [1, 27]}, BUILD, "p")
    assert "1.25 or newer" in unsuitable(
        Facts("micropython", (1, 24), GOOD.machine, 6, 0),
        BOARD | {"micropython": [1, 20]},
        BUILD,
        "p",
    )


def test_another_known_board_is_named() -> None:
    described = BOARD | {"board": "esp32", "machine": "ESP32"}
    assert "use BOARD=virtual" in unsuitable(GOOD, described, BUILD, "p")


# --- to the prompt


class Console:
    """A port, and behind it somebody who says the next of `says` at each Ctrl-C."""

    def __init__(self, *says: bytes) -> None:
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self.port = os.ttyname(slave)
        self.heard = b""
        self._thread = threading.Thread(target=self._talk, args=says)
        self._thread.start()

    def _talk(self, *says: bytes) -> None:
        for text in says:
            while not self.heard.endswith(b"\x03"):
                self.heard += os.read(self._master, 1)
            os.write(self._master, text)
            self.heard += os.read(self._master, 1)

    def rest(self) -> bytes:
        """Everything that was typed, once all is said."""
        self._thread.join()
        return self.heard + os.read(self._master, 4096)


def test_nothing_of_an_older_knock_is_under_way_once_the_board_has_stopped() -> None:
    """It was booting and kept what was typed for its prompt, where the answers come late."""
    one, two, three = (b"raw REPL\r\n>OKknock %d\r\n\x04\x04>" % n for n in (1, 2, 3))
    console = Console(b"ready\r\n", one, two + three)
    board = Board(console.port)
    board.interrupt()
    typed = console.rest()
    assert board.touched
    assert typed.count(b"\x03") == 3 and typed.endswith(b"print('knock', 3)\x04\r\x02")


def test_a_board_without_a_prompt_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "PROMPT_TIMEOUT_S", 1)
    console = Console(b"ets Jul 29 2019\r\ninvalid header: 0xffffffff\r\n")
    with pytest.raises(DeployFailed) as failed:
        Board(console.port).interrupt()
    assert "no prompt in 1 s; is a MicroPython board on it?" in str(failed.value)
    assert str(failed.value).endswith("    invalid header: 0xffffffff")
    console.rest()
