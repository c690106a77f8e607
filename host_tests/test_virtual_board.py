"""The virtual board against what an ESP32 does: boot, reset, power, pins, console, time, network.

Expected values come from the ESP32 port's documentation and sources (reset causes, order of
boot.py and main.py, REPL), from NXP's UM0701-02 (PN532 frames) and from independent readers
(mpremote, littlefs-python, datetime). Nothing waits for a fixed time; every wait has a deadline.
"""

import hashlib
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tools import paths, stage
from tools.virtual_board import image, vm
from tools.virtual_board.client import BoardError, VirtualBoard
from tools.virtual_board.pn532 import PN532

pytestmark = pytest.mark.usefixtures("micropython")

HEARTBEAT = """
import time
while True:
    time.sleep_ms(10)
"""
CAUSE = "import machine\nprint('cause', machine.reset_cause())\n"
WIFI = """
import network
wlan = network.WLAN(network.STA_IF)
wlan.active(True)
wlan.connect('any', 'key')
"""


def board(main: str = "", **options) -> VirtualBoard:
    files = {"main.py": main.encode(), **options.pop("files", {})}
    return VirtualBoard(files=files, **options)


@pytest.fixture(scope="module")
def idle() -> Iterator[VirtualBoard]:
    """A board whose main.py does nothing, for what does not depend on it."""
    with board() as one:
        one.wait_console(">>> ")
        yield one


def mpremote(one: VirtualBoard, *arguments: str) -> str:
    command = [sys.executable, "-m", "mpremote", "connect", one.pty, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def eventually(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


# --- console


def test_mpremote_runs_code(idle):
    assert mpremote(idle, "exec", "print(6 * 7)") == "42\n"
    assert mpremote(idle, "eval", "[n * n for n in range(4)]") == "[0, 1, 4, 9]\n"


def test_mpremote_reports_an_exception(idle):
    with pytest.raises(BoardError, match="ZeroDivisionError"):
        idle.exec("1/0")


def test_mpremote_copies_lists_and_hashes_files(idle, tmp_path):
    content = bytes(range(256)) * 40 + b"\r\n\n\r\x03\x04\x01"
    source, back = tmp_path / "blob.bin", tmp_path / "back.bin"
    source.write_bytes(content)
    mpremote(idle, "fs", "mkdir", ":data")
    mpremote(idle, "fs", "cp", str(source), ":data/blob.bin")
    mpremote(idle, "fs", "cp", ":data/blob.bin", str(back))
    assert back.read_bytes() == content
    digest = hashlib.sha256(content).hexdigest()
    assert digest in mpremote(idle, "fs", "sha256sum", ":data/blob.bin")
    assert f"{len(content)} blob.bin" in mpremote(idle, "fs", "ls", ":data")
    root = mpremote(idle, "fs", "ls").split()
    assert "main.py" in root and "data/" in root
    assert not [name for name in root if "stub" in name]
    mpremote(idle, "fs", "rm", ":data/blob.bin")
    mpremote(idle, "fs", "rmdir", ":data")


def test_a_person_types_at_the_friendly_repl(idle):
    before = len(idle.console())
    fd = os.open(idle.pty, os.O_RDWR | os.O_NOCTTY)
    try:
        os.write(fd, b"x = 21\rfor i in range(2):\r    print('sum', x * 2 + i)\r\r")
        eventually(lambda: "sum 43" in idle.console()[before:])
    finally:
        os.close(fd)
    assert "sum 42" in idle.console()[before:]


def test_a_board_says_what_it_is(idle):
    code = "import os, sys; print(os.uname().machine, sys.implementation._machine, sys.platform)"
    assert idle.exec(code) == "Wattlock virtual board Wattlock virtual board esp32\n"


def test_soft_reset_from_mpremote_runs_boot_but_not_main():
    # ESP32's main.c: after Ctrl-D in the raw REPL boot.py runs and main.py does not
    files = {"boot.py": b"print('this is boot')"}
    with board("print('this is main')", files=files) as one:
        one.wait_console("this is main")
        boots = one.boot()
        mpremote(one, "soft-reset")
        assert one.boot() > boots
        assert one.console().count("this is boot") == one.console().count("this is main") + 1


def test_ctrl_c_stops_main_and_gives_the_repl():
    with board("import machine\nmachine.Pin(18, machine.Pin.OUT, value=1)" + HEARTBEAT) as one:
        one.wait(contactor=1)
        assert mpremote(one, "resume", "exec", "print('here')") == "here\n"
        assert "KeyboardInterrupt" in one.console()
        assert one.pins()["contactor"] == 1


COUNTED = """
def counted(work):
    print('counting')
    for n in range(50):
        try:
            while True:
                work()
        except KeyboardInterrupt:
            print('interrupt', n)
"""


def typed(one: VirtualBoard, data: bytes) -> None:
    fd = os.open(one.pty, os.O_RDWR | os.O_NOCTTY)
    os.write(fd, data)
    os.close(fd)


def test_ctrl_c_never_lands_inside_the_collector():
    """An ESP32 raises between two bytecodes; out of the collector, the heap would stay locked."""
    work = "import gc, time\ncounted(lambda: (gc.collect(), time.sleep_ms(0)))"
    with board(COUNTED + work) as one:
        one.wait_console("counting\n")
        for n in range(50):
            typed(one, b"\x03")
            one.wait_console(f"interrupt {n}\n")
        assert one.boot() == 1


def test_ctrl_c_ends_code_that_never_waits():
    work = "def busy():\n    while True:\n        pass\ncounted(busy)"
    with board(COUNTED + work) as one:
        one.wait_console("counting\n")
        typed(one, b"\x03")
        one.wait_console("interrupt 0\n")


# --- boot


def test_boot_and_main_run_in_order_on_the_flash():
    files = {
        "boot.py": b"import os\nprint('boot', os.getcwd(), __name__)\nshared = 5",
        "lib/helper.py": b"answer = 37",
    }
    main = "import helper, sys\nprint('main', shared + helper.answer, sys.path)"
    with board(main, files=files) as one:
        console = one.wait_console("main 42")
    assert console.index("boot / __main__") < console.index("main 42")


def test_an_exception_in_boot_prevents_main():
    files = {"boot.py": b"raise ValueError('broken boot')"}
    with board("print('main ran')", files=files) as one:
        console = one.wait_console(">>> ")
    assert "ValueError: broken boot" in console and "main ran" not in console


def test_an_exception_in_main_leaves_the_outputs_and_gives_the_repl():
    with board("import machine\nmachine.Pin(18, machine.Pin.OUT, value=1)\n1/0") as one:
        console = one.wait_console(">>> ")
        assert "ZeroDivisionError" in console
        assert one.pins()["contactor"] == 1
        assert one.exec("print('alive')") == "alive\n"


def test_sys_exit_in_main_is_a_soft_reset():
    main = CAUSE + "import sys\nif machine.reset_cause() == 1: sys.exit()" + HEARTBEAT
    with board(main) as one:
        console = one.wait_console("cause 5")
    assert "MPY: soft reboot" in console


def test_a_blank_flash_is_formatted_and_a_broken_one_stops_before_boot(tmp_path):
    with VirtualBoard(state=tmp_path) as one:
        one.wait_console(">>> ")
    assert "boot.py" in image.read_files(tmp_path / "flash.bin")
    flash = tmp_path / "flash.bin"
    with flash.open("r+b") as file:
        file.write(b"\x00" * 8192)  # both copies of the superblock
    with VirtualBoard(state=tmp_path) as one:
        one.wait_console("filesystem appears to be corrupted")
    assert flash.read_bytes()[:8192] == b"\x00" * 8192


def test_the_flash_survives_the_board(tmp_path):
    with VirtualBoard(state=tmp_path) as one:
        one.wait_console(">>> ")
        one.exec("with open('kept.txt', 'w') as f: f.write('from the VM')")
    assert image.read_files(tmp_path / "flash.bin")["kept.txt"] == b"from the VM"
    image.write_files(tmp_path / "flash.bin", {"data/host.txt": b"from the host"})
    with VirtualBoard(state=tmp_path) as one:
        one.wait_console(">>> ")
        code = "print(open('kept.txt').read(), open('data/host.txt').read())"
        assert one.exec(code) == "from the VM from the host\n"


def test_the_image_tool_lists_and_reads(tmp_path, capsys, monkeypatch):
    flash = tmp_path / "flash.bin"
    image.blank(flash)
    image.write_files(flash, {"a/b/c.txt": b"deep"})
    for arguments, expected in (
        (["ls", str(flash)], "a/b/c.txt"),
        (["cat", str(flash), "/a/b/c.txt"], "deep"),
    ):
        monkeypatch.setattr(sys, "argv", ["image", *arguments])
        assert image.main() == 0
        assert expected in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["image", "cat", str(flash), "nothing"])
    assert image.main() == 1
    assert "nothing" in capsys.readouterr().err


# --- pins and physics


def test_pins_are_driven_and_seen():
    main = """
import machine, time
contactor = machine.Pin(18, machine.Pin.OUT, value=0)
feedback, plugged, ready = (machine.Pin(n, machine.Pin.IN) for n in (34, 32, 33))
while True:
    contactor.value(plugged() and ready())
    time.sleep_ms(5)
"""
    with board(main) as one:
        one.wait(contactor=0, contactor_feedback=0, plugged=0)
        one.car("B")
        one.wait(plugged=1, ready=0, contactor=0)
        one.car("C")
        one.wait(ready=1, contactor=1, contactor_feedback=1)
        one.car("A")
        one.wait(plugged=0, ready=0, contactor=0, contactor_feedback=0)
        closings = [e["value"] for e in one.watch.events if e["ev"] == "contactor"]
    assert closings == [1, 0]


def test_input_only_pins_refuse_to_be_outputs(idle):
    with pytest.raises(BoardError, match="pin can only be input"):
        idle.exec("import machine; machine.Pin(34, machine.Pin.OUT)")


def test_interrupts_see_inputs_change():
    main = """
import machine
def seen(pin):
    print('irq', pin.value())
machine.Pin(32, machine.Pin.IN).irq(seen, machine.Pin.IRQ_RISING)
print('armed')
"""
    with board(main + HEARTBEAT) as one:
        one.wait_console("armed")
        one.car("B")
        one.wait_console("irq 1")


def test_a_locked_connector_cannot_be_pulled(idle):
    idle.exec("import machine; lock = machine.Pin(19, machine.Pin.OUT, value=1)")
    idle.car("B")
    idle.wait(lock=1, lock_feedback=1)
    with pytest.raises(BoardError, match="locked"):
        idle.car("A")
    assert idle.pins()["plugged"] == 1
    idle.exec("lock.off()")
    idle.wait(lock_feedback=0)
    idle.car("A")
    assert idle.pins()["plugged"] == 0


def test_faults_of_contactor_and_lock(idle):
    idle.exec(
        "import machine; c = machine.Pin(18, machine.Pin.OUT, value=0);"
        "lock = machine.Pin(19, machine.Pin.OUT, value=0)"
    )
    idle.fault("welded")
    assert idle.pins()["contactor_feedback"] == 1 and idle.pins()["contactor"] == 0
    idle.fault("welded", on=False)
    idle.fault("stuck_open")
    idle.exec("c.on()")
    pins = idle.wait(contactor=1)["evses"]["1"]["pins"]
    assert pins["contactor_feedback"] == 0
    idle.fault("stuck_open", on=False)
    idle.wait(contactor_feedback=1)
    idle.fault("lock_stuck")
    idle.exec("c.off(); lock.on()")
    assert idle.wait(lock=1, contactor=0)["evses"]["1"]["pins"]["lock_feedback"] == 0
    idle.fault("lock_stuck", on=False)
    idle.wait(lock_feedback=1)
    idle.exec("lock.off()")
    idle.fault("estop")
    assert idle.exec("print(machine.Pin(39)())") == "1\n"
    idle.fault("estop", on=False)
    assert idle.exec("print(machine.Pin(39)())") == "0\n"


def test_the_control_port_names_what_is_wrong(idle):
    for request, words in (
        ({"do": "dance"}, ["do", "dance", "get"]),
        ({"do": "car", "cp": "Z"}, ["cp", "Z"]),
        ({"do": "car"}, ["cp"]),
        ({"do": "car", "evse": 7, "cp": "A"}, ["evse", "7"]),
        ({"do": "power", "on": False, "when": "later"}, ["when", "later", "flash_op"]),
        ({"do": "token", "uid": "xyz"}, ["uid", "xyz"]),
        ({"do": "time", "advance_ms": 1 << 30}, ["advance_ms"]),
        ({"do": "reset", "cause": "boredom"}, ["cause", "boredom"]),
        ({"do": "fault", "what": "rust"}, ["what", "rust"]),
        ({"do": "pulse", "count": 0}, ["count", "0"]),
    ):
        fields = {name: value for name, value in request.items() if name != "do"}
        with pytest.raises(BoardError) as refusal:
            idle.ask(request["do"], **fields)
        for word in words:
            assert word in str(refusal.value)
    with socket.create_connection(idle.control.split(":")) as connection:
        connection.sendall(b"nonsense\n[1]\n")
        with connection.makefile() as lines:
            assert json.loads(lines.readline())["ok"] is False
            assert json.loads(lines.readline())["ok"] is False


def test_a_wait_that_fails_says_what_it_saw(idle):
    with pytest.raises(BoardError, match="contactor"):
        idle.wait(contactor=1, timeout_s=0.05)


# --- resets and power


OUTPUTS = """
import machine
for n in (18, 19, 21):
    machine.Pin(n, machine.Pin.OUT, value=1)
"""


@pytest.mark.parametrize(
    ("cause", "number", "outputs"),
    # machine.reset_cause() of the ESP32 port; panic and machine.reset() read as HARD_RESET
    [("soft", 5, 1), ("watchdog", 3, 0), ("panic", 2, 0), ("hard", 2, 0)],
)
def test_reset_causes_and_outputs(cause, number, outputs):
    main = CAUSE + f"if machine.reset_cause() == 1:{OUTPUTS.replace(chr(10), chr(10) + ' ')}\n"
    with board(main) as one:
        one.wait(contactor=1, lock=1, led=1)
        boot = one.boot()
        one.reset(cause)
        one.wait_console(f"cause {number}")
        assert one.boot() == boot + 1
        pins = one.pins()
        assert (pins["contactor"], pins["led"]) == (outputs, outputs)
        assert pins["lock"] == 1, "the motor lock stays where it is while its pin floats"
        event = one.watch.wait_for(lambda e: e["ev"] == "boot" and e["boot"] == boot + 1)
        assert event["cause"] == cause


def test_resets_by_the_firmware():
    main = CAUSE + """
if machine.reset_cause() == 1:
    machine.reset()
elif machine.reset_cause() == 2:
    machine.soft_reset()
"""
    with board(main) as one:
        console = one.wait_console("cause 5")
    assert console.index("cause 1") < console.index("cause 2") < console.index("cause 5")


def test_a_starved_watchdog_resets_and_a_fed_one_does_not():
    main = CAUSE + """
import time
if machine.reset_cause() == 1:
    dog = machine.WDT(timeout=1500)
    for _ in range(20):
        time.sleep_ms(100)  # 2 s in all: longer than the watchdog's patience
        dog.feed()
    print('fed for longer than the timeout')
    while True:
        pass
"""
    with board(main) as one:
        console = one.wait_console("cause 3", timeout_s=20)
        assert one.watch.wait_for(lambda e: e.get("cause") == "watchdog")["ev"] == "boot"
    assert "fed for longer" in console and console.count("cause 1") == 1


def test_a_blocking_read_without_data_really_blocks_until_the_watchdog_comes():
    # on an ESP32 setblocking(True) takes the timeout away; the unix port keeps it and hides this
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        main = CAUSE + WIFI + f"""
if machine.reset_cause() == 1:
    import socket
    s = socket.socket()
    s.connect(socket.getaddrinfo('127.0.0.1', {port})[0][-1])
    s.settimeout(0.2)
    try:
        s.read(1)
    except OSError as e:
        print('timed out')
    s.setblocking(True)
    machine.WDT(timeout=1000)
    s.read(1)
    print('never')
"""
        with board(main) as one:
            console = one.wait_console("cause 3", timeout_s=20)
    assert "timed out" in console and "never" not in console


def test_power_off_and_on():
    with board(CAUSE + OUTPUTS + HEARTBEAT) as one:
        one.wait(contactor=1, lock=1)
        one.power_off()
        picture = one.get()
        pins = picture["evses"]["1"]["pins"]
        assert picture["power"] == 0
        assert (pins["contactor"], pins["contactor_feedback"], pins["led"]) == (0, 0, 0)
        assert (pins["lock"], pins["lock_feedback"]) == (1, 1)
        one.car("C")  # the world goes on
        with pytest.raises(BoardError, match="power"):
            one.reset("soft")
        one.power_on()
        one.wait(power=1, contactor=1)
        stage.until("the second boot's line", lambda: one.console().count("cause 1") == 2)
        powers = [e["value"] for e in one.watch.events if e["ev"] == "power"]
    assert powers == [0, 1]


@pytest.mark.parametrize(
    ("way", "expected"),
    [("soft", "kept"), ("hard", "kept"), ("watchdog", "kept"), ("rtc kept", "kept"), ("lost", "")],
)
def test_rtc_memory_and_clock_survive_all_but_lost_power(idle, way, expected):
    idle.exec(
        "import machine; r = machine.RTC(); r.memory(b'kept');"
        "r.datetime((2026, 11, 22, 0, 12, 0, 0, 0))"
    )
    if way in ("rtc kept", "lost"):
        idle.power_off()
        idle.power_on(rtc="kept" if way == "rtc kept" else "lost")
    else:
        idle.reset(way)
    code = "import machine; r = machine.RTC(); print(r.memory().decode(), r.datetime()[0])"
    assert idle.exec(code).split() == ([expected, "2026"] if expected else ["2000"])


def test_rtc_memory_takes_2048_bytes(idle):
    idle.exec("import machine; machine.RTC().memory(bytes(2048))")
    with pytest.raises(BoardError, match="ValueError"):
        idle.exec("import machine; machine.RTC().memory(bytes(2049))")


REWRITE = """
import os, time
n = 0
while True:
    n += 1
    with open('new', 'w') as f:
        f.write('%d ' % n * 400)
    os.rename('new', 'value')
    time.sleep_ms(5)
"""


@pytest.mark.parametrize("torn", ["none", "half"])
def test_a_power_cut_at_any_flash_operation_leaves_a_file_system_that_mounts(torn):
    with board(REWRITE) as one:
        for n in (1, 2, 3, 4, 5, 7, 11, 16):
            one.wait(power=1)
            eventually(lambda: one.flash_stat()["programs"] > 20)
            mark = one.watch.mark()
            one.power_off(when=f"flash_op:{n}", torn=torn)
            one.watch.wait_for(lambda e: e["ev"] == "power" and e["value"] == 0, since=mark)
            words = image.read_files(one.flash)["value"].split()
            assert len(words) == 400 and len(set(words)) == 1, "rename replaces at once or not"
            one.power_on()
        one.wait(power=1)
        eventually(lambda: one.flash_stat()["programs"] > 20)


def test_a_cut_operation_is_done_not_at_all_or_half(tmp_path):
    main = """
import machine, time
print('ready')
while not machine.Pin(32, machine.Pin.IN)():
    time.sleep_ms(5)
with open('file', 'w') as f:
    f.write('x' * 1000)
"""
    changed = []
    with board(main, state=tmp_path) as one:
        one.power_off()
        fresh = one.flash.read_bytes()
        for n in (1, 2, 3, 4):
            for torn in ("none", "half"):
                one.flash.write_bytes(fresh)
                one.car("A")
                one.power_on()
                one.power_off(when=f"flash_op:{n}", torn=torn)
                one.car("B")
                one.wait(power=0)
                after = one.flash.read_bytes()
                changed.append(sum(a != b for a, b in zip(fresh, after, strict=True)))
    assert changed[0] == 0
    assert changed == sorted(changed), "every cut is later than the one before"
    halves = zip(changed[::2], changed[1::2], changed[2::2], strict=False)
    assert any(none < half < done for none, half, done in halves)


def test_a_power_cut_at_the_closing_of_the_contactor():
    main = OUTPUTS.replace("value=1", "value=0") + """
print('ready')
import time
while not machine.Pin(32, machine.Pin.IN)():
    time.sleep_ms(5)
machine.Pin(18).on()
print('survived')
"""
    with board(main) as one:
        one.wait_console("ready")
        one.power_off(when="contactor_close:1")
        one.car("C")
        one.wait(power=0)
        one.watch.wait_for(lambda e: e["ev"] == "power")
        kinds = ("contactor", "power")
        told = [(e["ev"], e["value"]) for e in one.watch.events if e["ev"] in kinds]
        assert told == [("contactor", 1), ("contactor", 0), ("power", 0)]
        assert "survived" not in one.console()


def test_flash_operations_fail_and_are_counted():
    with board() as one:
        one.wait_console(">>> ")
        before = one.flash_stat()
        one.exec("with open('a', 'w') as f: f.write('x' * 5000)")
        after = one.flash_stat()
        assert after["program_bytes"] - before["program_bytes"] >= 5000
        assert after["programs"] > before["programs"] and after["erases"] > before["erases"]
        assert one.watch.wait_for(lambda e: e["ev"] == "sync")
        assert one.watch.wait_for(lambda e: e["ev"] == "erase")
        for what in ("program", "erase"):
            one.fail_flash(what)
            outcome = one.exec(
                "try:\n with open('b', 'w') as f: f.write('x' * 5000)\n"
                "except OSError as e: print(e)"
            )
            # littlefs takes a failing block for worn out and uses another, or passes EIO on
            assert outcome in ("", "[Errno 5] EIO\n")
            assert one.ask("flash", stat=True)["ok"]
        assert one.exec("print(len(open('a').read()))") == "5000\n"
        one.fail_flash("read")
        code = "try:\n print(len(open('a').read()))\nexcept OSError as e: print(e)"
        assert "EIO" in one.exec(code)


def test_a_full_flash_takes_no_more_and_can_be_freed():
    with board(HEARTBEAT) as one:
        one.fill_flash()
        code = (
            "try:\n with open('big', 'w') as f:\n"
            "  for _ in range(9): f.write('x' * 1024); f.flush()\n"
            "except OSError as e: print(e.errno)"
        )
        assert one.exec(code) == "28\n"  # ENOSPC
        one.fill_flash(False)
        assert one.exec(code) == ""


# --- time


def test_ticks_begin_at_power_on_and_the_epoch_is_2000(idle):
    idle.advance(3_600_000)
    assert int(idle.exec("import time; print(time.ticks_ms())")) >= 3_600_000
    idle.reset("hard")
    assert int(idle.exec("import time; print(time.ticks_ms())")) < 600_000
    assert idle.exec("import time; print(time.gmtime(0)[:6])") == "(2000, 1, 1, 0, 0, 0)\n"
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC) - datetime(2000, 1, 1, tzinfo=UTC)
    code = "print(time.mktime((2026, 11, 22, 12, 0, 0, 0, 0)))"
    assert int(idle.exec(code)) == noon.total_seconds()


def test_the_clock_is_set_from_outside_and_by_the_firmware(idle):
    idle.clock(unix_ms=int(datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC).timestamp() * 1000))
    code = "import machine, time; print(machine.RTC().datetime()[:4], time.gmtime()[:3])"
    # 2031-05-06 is a Tuesday: 1 with Monday as 0
    assert idle.exec(code) == "(2031, 5, 6, 1) (2031, 5, 6)\n"
    idle.clock(unix_ms=None)
    assert idle.exec("import time; print(time.gmtime()[0])") == "2000\n"


def test_time_skips_ahead_under_a_sleeping_firmware():
    main = """
import time, select
print('asleep')
t = time.ticks_ms()
time.sleep(3600)
print('slept', time.ticks_diff(time.ticks_ms(), t) >= 3600000)
t = time.ticks_ms()
select.poll().poll(1800000)
print('polled', time.ticks_diff(time.ticks_ms(), t) >= 1800000)
"""
    with board(main) as one:
        one.wait_console("asleep")
        t_ms = one.get()["t_ms"]
        one.advance(3_600_000)
        one.wait_console("slept True")
        one.advance(1_800_000)
        one.wait_console("polled True")
        assert one.get()["t_ms"] >= t_ms + 5_400_000


def test_ticks_wrap_at_2_to_the_30(idle):
    code = "import time; t = time.ticks_ms(); print(t)"
    before = int(idle.exec(code))
    for _ in range(3):
        idle.advance((1 << 29) - 1)
    after = int(idle.exec(code))
    assert 0 <= after < 1 << 30
    assert (after - before - 3 * ((1 << 29) - 1)) % (1 << 30) < 60_000
    assert idle.exec("print(time.ticks_diff(time.ticks_add(t, 5000), t))") == "5000\n"


def test_a_fast_crystal_gains_on_the_world(idle):
    idle.power_off()
    idle.power_on()
    idle.clock(unix_ms=0, ppm=100)
    idle.advance(100_000_000)  # 100 ppm of 100,000 s are 10 s
    seconds = int(idle.exec("import time; print(time.time() + 946684800)"))
    idle.clock(ppm=0)
    assert 100_010 <= seconds < 100_060


# --- UART and card reader


def test_uart_1_is_the_serial_device():
    master, slave = os.openpty()
    tty.setraw(slave)
    main = """
import machine, time, select
u = machine.UART(1, baudrate=9600, tx=17, rx=16, timeout=0)
print('nothing yet', u.any(), u.read(), u.readinto(bytearray(4)))
u.write(b'\\x01\\x03\\x03\\x11\\x13\\r\\n')
p = select.poll()
p.register(u, select.POLLIN)
print('poll', len(p.poll(10000)))
while u.any() < 6:
    time.sleep_ms(1)
buf = bytearray(4)
print('got', u.readinto(buf), buf, u.read(), u.any())
u = machine.UART(1, 9600, timeout=50)
print('silence', u.read(1))
"""
    try:
        with board(main, serial=os.ttyname(slave)) as one:
            sent = b""
            while len(sent) < 7:
                sent += os.read(master, 64)
            assert sent == b"\x01\x03\x03\x11\x13\r\n", "raw bytes, no line discipline"
            os.write(master, b"\x00\x03\x04\x11\x13\xff")
            console = one.wait_console("silence None")
    finally:
        os.close(master)
        os.close(slave)
    assert "nothing yet 0 None None" in console and "poll 1" in console
    assert r"got 4 bytearray(b'\x00\x03\x04\x11') b'\x13\xff' 0" in console


def test_uart_1_is_a_socket():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        main = """
import machine, time
u = machine.UART(1)
while not u.any():
    u.write(b'?')
    time.sleep_ms(20)
print('heard', u.read(1))
"""
        with board(main, serial=f"127.0.0.1:{server.getsockname()[1]}") as one:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(20)
                assert connection.recv(1) == b"?"
                connection.sendall(b"!")
                one.wait_console("heard b'!'")


def test_the_vm_does_not_outlive_its_board():
    one = board("import os, time\nprint('pid of', os.getenv('WIRES_STATE'))" + HEARTBEAT).start()
    try:
        one.wait_console("pid of")
        marker = f"WIRES_STATE={one.state}".encode()

        def alive() -> bool:
            for entry in Path("/proc").glob("[0-9]*/environ"):
                try:
                    if marker in entry.read_bytes():
                        return True
                except OSError:
                    continue
            return False

        if Path("/proc").is_dir():
            assert alive()
        one.kill()
        eventually(lambda: not alive())
    finally:
        one.stop()


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


GET_FIRMWARE_VERSION = hexed("0000ff02fed4022a00")  # UM0701-02, 7.2.2 and the usual answer
SAM_CONFIGURATION = hexed("0000ff05fbd4140114010200")
IN_LIST_PASSIVE_TARGET = hexed("0000ff04fcd44a0100e100")
ACK = hexed("0000ff00ff00")
WAKE_UP = hexed("5555000000000000000000000000")


def reader(*, awake: bool = True) -> tuple[PN532, list[bytes]]:
    said: list[bytes] = []
    chip = PN532(said.append)
    if awake:
        chip.receive(WAKE_UP + SAM_CONFIGURATION)
        assert said == [ACK, hexed("0000ff02fed5151600")]
        said.clear()
    return chip, said


def test_pn532_sleeps_until_the_long_preamble():
    chip, said = reader(awake=False)
    chip.receive(GET_FIRMWARE_VERSION)
    assert said == []
    chip.receive(WAKE_UP + GET_FIRMWARE_VERSION)
    assert said == [ACK, hexed("0000ff06fad50332010607e800")]


def test_pn532_answers_in_pieces_and_again_after_nack():
    chip, said = reader()
    for byte in GET_FIRMWARE_VERSION:
        chip.receive(bytes((byte,)))
    answer = hexed("0000ff06fad50332010607e800")
    assert said == [ACK, answer]
    chip.receive(hexed("0000ffff0000"))
    assert said == [ACK, answer, answer]


def test_pn532_ignores_damaged_frames_and_names_unknown_commands():
    chip, said = reader()
    chip.receive(hexed("0000ff02fed4022b00"))  # checksum of the data
    chip.receive(hexed("0000ff02ffd4022a00"))  # checksum of the length
    assert said == []
    chip.receive(hexed("0000ff02fed4f03c00"))
    assert said == [ACK, hexed("0000ff01ff7f8100")]  # syntax error frame, 6.2.1.4


@pytest.mark.parametrize(
    ("uid", "answer"),
    [
        # SENS_RES bits 7-6 of ISO/IEC 14443-3 tell the size of the uid: single, double
        ("cafe1234", "0000ff0cf4d54b010100040804cafe1234c000"),
        ("04a1b2c3d4e5f6", "0000ff0ff1d54b01010044000704a1b2c3d4e5f6ca00"),
    ],
)
def test_pn532_lists_a_card(uid, answer):
    chip, said = reader()
    chip.present(hexed(uid))
    chip.receive(IN_LIST_PASSIVE_TARGET)
    assert said == [ACK, hexed(answer)]
    assert chip.times_read == 1


def test_pn532_waits_for_a_card_until_one_comes_or_the_host_gives_up():
    chip, said = reader()
    chip.receive(IN_LIST_PASSIVE_TARGET)
    assert said == [ACK]
    chip.present(hexed("cafe1234"))
    assert said[1:] == [hexed("0000ff0cf4d54b010100040804cafe1234c000")]
    chip.present(None)
    said.clear()
    chip.receive(IN_LIST_PASSIVE_TARGET + ACK)
    chip.present(hexed("cafe1234"))
    assert said == [ACK]


def test_pn532_with_bounded_retries_says_that_there_is_no_card():
    chip, said = reader()
    chip.receive(hexed("0000ff06fad43205ff0102f300"))  # RFConfiguration, MaxRetries 0xff 0x01 0x02
    chip.receive(IN_LIST_PASSIVE_TARGET)
    assert said == [ACK, hexed("0000ff02fed533f800"), ACK, hexed("0000ff03fdd54b00e000")]


def test_a_dead_reader_is_silent():
    chip, said = reader()
    chip.dead = True
    chip.receive(GET_FIRMWARE_VERSION)
    assert said == []


def test_a_card_reaches_the_vm_through_uart_2():
    main = f"""
import machine, time
u = machine.UART(2, 115200, tx=25, rx=26)
u.write({WAKE_UP + SAM_CONFIGURATION!r})
seen = b''
def until(part):
    global seen
    while part not in seen:
        seen += u.read() or b''
        time.sleep_ms(5)
    seen = b''
until({hexed("d5151600")!r})
u.write({IN_LIST_PASSIVE_TARGET!r})
until({ACK!r})
print('waiting for a card')
until({hexed("0404a1b2c3")!r})
print('a card')
"""
    with board(main) as one:
        one.wait_console("waiting for a card")
        one.token("04A1B2C3")
        one.wait_console("\na card")


# --- network


def test_no_network_before_wifi_and_none_after_it_went():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def greet() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"hello")
                    connection.recv(1)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        attempt = f"""
import socket
def attempt():
    s = socket.socket()
    try:
        s.settimeout(5)
        s.connect(('127.0.0.1', {port}))
        return s.read(5)
    except OSError as e:
        return e.errno
    finally:
        s.close()
"""
        with board() as one:
            one.wait_console(">>> ")
            one.exec(attempt)
            assert one.exec("print(attempt())") == "113\n"  # EHOSTUNREACH
            one.exec(WIFI)
            assert one.exec("print(wlan.isconnected(), attempt())") == "True b'hello'\n"
            one.net(wifi="down")
            state = "print(wlan.isconnected(), wlan.status(), attempt())"
            assert one.exec(state) == "False 201 113\n"
            one.net(wifi="ok")
            assert one.exec("print(wlan.isconnected(), attempt())") == "True b'hello'\n"
            lookup = (
                "try: print(socket.getaddrinfo('localhost', 80)[0][-1])\n"
                "except OSError as e: print(e.errno)"
            )
            assert one.exec(lookup) == "('127.0.0.1', 80)\n"
            one.net(dns="fail")
            assert one.exec(lookup) == "-202\n"  # EAI_FAIL of lwIP
            assert one.exec("print(attempt())") == "b'hello'\n", "an address needs no lookup"
            one.reset("hard")
            one.exec(attempt)
            assert one.exec("print(attempt())") == "113\n", "a reset leaves the access point"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


# --- heap


def test_the_heap_option_is_what_the_firmware_gets(micropython):
    """What a bare VM of that size has free, the board has free with stubs and umqtt loaded."""
    facts = [str(micropython), "-c", "import sys; print(sys.maxsize > 2**31)"]
    if subprocess.run(facts, capture_output=True, text=True, check=True).stdout == "True\n":
        pytest.skip("STUBS_HEAP is measured on the 32-bit VM, this one has 64 bits")
    names = "machine network time select socket os usocket umqtt.simple"
    main = f"import gc\nfor name in '{names}'.split(): __import__(name)\ngc.collect()\n"
    main += "print('free', gc.mem_free())"
    with board(main) as one:
        console = one.wait_console(">>> ")
    free = int(console.partition("free ")[2].split()[0])
    code = "import gc; gc.collect(); print(gc.mem_free())"
    command = [str(micropython), "-X", "heapsize=96k", "-c", code]
    bare = subprocess.run(command, capture_output=True, text=True, check=True)
    assert abs(free - int(bare.stdout)) <= 1024, f"set vm.STUBS_HEAP: {vm.STUBS_HEAP}"


def test_heap_numbers_and_the_limit_are_real():
    main = "import machine, time\nmachine.WDT(timeout=60000)\nbig = bytearray(20000)" + HEARTBEAT
    with board(main, heap="64k") as one:
        eventually(lambda: one.heap()["used"] > 20000)
        heap = one.heap(collect=True)
        assert heap["used"] > 20000
        assert heap["used"] + heap["free"] < 64 * 1024 + vm.STUBS_HEAP
        with pytest.raises(BoardError, match="MemoryError"):
            one.exec("x = bytearray(64 * 1024)")


# --- the loop's stall


def test_what_a_turn_waits_for_and_writes_is_counted():
    """Between two feedings: a sleep of 30 ms; a call that could wait for ever; one write to the
    flash, at 45 ms an erase and 0.8 ms for 256 bytes programmed."""
    main = """
import machine, socket, time
dog = machine.WDT(timeout=60000)
def turn(what):
    what()
    dog.feed()
def write():
    with open('/x', 'w') as f: f.write('x' * 5000)
def call(blocking):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setblocking(blocking)
    s.sendto(b'x', ('127.0.0.1', 9))
    s.close()
"""
    with board(main) as one:
        one.wait_console(">>> ")
        one.exec(WIFI)
        one.exec("dog.feed()")
        one.stall()
        one.exec("turn(lambda: time.sleep_ms(30))")
        assert one.stall() == {"ms": 30, "sync_ms": 0}
        one.exec("turn(lambda: call(False))")
        assert one.stall() == {"ms": 0, "sync_ms": 0}
        one.exec("turn(lambda: call(True))")
        assert one.stall() == {"ms": 10_000, "sync_ms": 0}
        before = one.flash_stat()
        one.exec("turn(write)")
        after = one.flash_stat()
        erases, size = (after[k] - before[k] for k in ("erases", "program_bytes"))
        assert erases >= 2 and size >= 5000
        found = one.stall()
        assert found["ms"] == 0 and abs(found["sync_ms"] - (45 * erases + 0.8 * size / 256)) < 1
        assert one.stall() == {"ms": 0, "sync_ms": 0}, "asked anew"


# --- the same stubs under CPython


@pytest.fixture
def stubs(monkeypatch):
    """`machine` and its wires, fresh."""
    monkeypatch.syspath_prepend(str(paths.STUBS))
    for name in ("machine", "wires", "network", "esp32"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    machine = importlib.import_module("machine")
    wires = importlib.import_module("wires")
    yield machine, wires
    for name in ("machine", "wires", "network", "esp32"):
        sys.modules.pop(name, None)


def test_stubs_script_and_record_pins(stubs):
    machine, wires = stubs
    pin = machine.Pin(18, machine.Pin.OUT, value=1)
    pin.off()
    assert wires.log == [("pin", 18, 1), ("pin", 18, 0)]
    wires.inputs[32] = 1
    assert machine.Pin(32, machine.Pin.IN)() == 1


def test_a_scripted_uart_fails_loudly_on_what_was_not_written_down(stubs):
    machine, wires = stubs
    with pytest.raises(AssertionError, match="script"):
        machine.UART(1)
    script = wires.uarts[1] = wires.Script([(b"ping", [(40, b"po"), (60, b"ng")])])
    uart = machine.UART(1, 9600)
    uart.write(b"pi")
    uart.write(b"ng")
    assert uart.any() == 0
    wires.sleep_ms(40)
    assert uart.read() == b"po"
    wires.sleep_ms(20)
    assert uart.read() == b"ng"
    script.done()
    with pytest.raises(AssertionError, match="unscripted"):
        uart.write(b"again")


def test_a_script_that_is_not_followed_names_both_sides(stubs):
    machine, wires = stubs
    wires.uarts[1] = wires.Script([(b"\x01\x03", None)])
    with pytest.raises(AssertionError, match="01 04.*01 03"):
        machine.UART(1).write(b"\x01\x04")
    with pytest.raises(AssertionError, match="never written"):
        wires.uarts[1].done()


@pytest.mark.parametrize(
    "text", ["2000-01-01", "2000-02-29", "2024-12-31", "2026-11-22", "2099-03-01"]
)
def test_the_rtc_agrees_with_datetime(stubs, text):
    machine, _ = stubs
    day = datetime.fromisoformat(text + "T13:14:15").replace(tzinfo=UTC)
    rtc = machine.RTC()
    rtc.datetime((day.year, day.month, day.day, 0, 13, 14, 15, 250_000))
    _, wires = stubs
    assert wires.unix_ms() == int(day.timestamp()) * 1000 + 250
    assert rtc.datetime() == (
        day.year, day.month, day.day, day.weekday(), 13, 14, 15, 250_000
    )


def test_a_reset_ends_what_runs_under_cpython(stubs):
    machine, wires = stubs
    with pytest.raises(wires.HardReset):
        machine.reset()
    assert wires.log == [("hard_reset",)]


def test_the_board_does_not_start_without_a_vm(tmp_path):
    with pytest.raises(BoardError, match=r"--vm .*does not exist.*make setup"):
        VirtualBoard(state=tmp_path, vm=str(tmp_path / "no-such-vm")).start()


def test_state_survives_in_the_given_directory_only(tmp_path):
    one = VirtualBoard(state=tmp_path)
    with one:
        assert Path(one.pty).is_symlink()
        one.wait_console(">>> ")
    assert not Path(one.pty).is_symlink()
    assert (tmp_path / "flash.bin").exists()
    temporary = VirtualBoard()
    with temporary:
        assert temporary.state.exists()
    assert not temporary.state.exists()
