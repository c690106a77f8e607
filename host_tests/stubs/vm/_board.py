"""What the chip's firmware does around the user's files: mount the flash, boot.py, main.py, REPL.

Started in the VM by `tools/virtual_board`; never returns. As on an ESP32: a failing boot.py
prevents main.py, a failing main.py ends in the REPL with the outputs as they were, after Ctrl-D in
the raw REPL main.py is skipped, `sys.exit()` is a soft reset, and a file system that is neither
blank nor mountable stops everything here.

Limits: the friendly REPL knows lines and indented blocks, no history and no completion. After a
soft reset files left open are lost (an ESP32 would still close them).
"""

import gc
import io
import sys

import wires
from wires import select, vfs

import __main__

_WINDOW = 128  # bytes of raw paste that may be under way

_globals = __main__.__dict__
_write = sys.stdout.buffer.write
_stdin = sys.stdin.buffer
_poll = select.poll()
_poll.register(sys.stdin, select.POLLIN)


def _mount():
    flash = wires.Flash()
    try:
        fs = vfs.VfsLfs2(flash)
    except OSError:
        head = bytearray(64)
        flash.readblocks(0, head)
        while head != b"\xff" * 64:
            print("The filesystem appears to be corrupted: copy an image to flash.bin.")
            wires.sleep_ms(3000)
        vfs.VfsLfs2.mkfs(flash)
        fs = vfs.VfsLfs2(flash)
        with fs.open("boot.py", "w") as file:
            file.write("# This file is executed on every boot.\n")
    stubs = vfs.VfsPosix(wires.os.getenv("MICROPYPATH"))
    vfs.umount("/")
    vfs.mount(fs, "/")
    vfs.mount(stubs, "/_stubs")
    wires.os.chdir("/")
    wires.file_system = fs
    sys.path[:] = ["", ".frozen", "/_stubs", "/lib"]
    sys.argv[:] = []
    global _sys
    import _sys

    sys.modules["sys"] = _sys
    sys.modules["tls"] = _Tls()


class _Tls:
    """`_tls`, once somebody wants it."""

    def __getattr__(self, name):
        import _tls

        return getattr(_tls, name)


def _run(code, *args):
    """Call `code` so that byte 3 on the console interrupts it; the exception that ended it."""
    try:
        try:
            wires.running(1)
            code(*args)
        finally:
            wires.running(0)
    except SystemExit:
        print("MPY: soft reboot")
        wires.soft_reset(_raw)
    except BaseException as error:
        return error


def _show(error):
    sys.print_exception(error)


def _file(name):
    try:
        wires.file_system.stat(name)
    except OSError:
        return True
    error = _run(execfile, name, _globals)  # noqa: F821
    if error:
        _show(error)
    return not error


def _read():
    while True:
        wires.turn()
        for _ in _poll.ipoll(20):
            c = _stdin.read(1)
            if not c:
                wires.hard_reset()  # the parent is gone
            return c


def _raw_paste():
    _write(b"R\x01" + bytes((_WINDOW, 0)) + b"\x01")
    source = bytearray()
    room = _WINDOW
    while True:
        c = _read()
        if c == b"\x04":
            _write(b"\x04")
            return source
        if c == b"\x03":
            _write(b"\x04")
            return b""
        source.extend(c)
        room -= 1
        if not room:
            _write(b"\x01")
            room = _WINDOW


def _raw_repl():
    _write(b"raw REPL; CTRL-B to exit\r\n>")
    source = bytearray()
    while True:
        c = _read()
        if c == b"\x01":
            if source == b"\x05A":
                _execute(_raw_paste())
                _write(b">")
            else:
                _write(b"raw REPL; CTRL-B to exit\r\n>")
            source = bytearray()
        elif c == b"\x02":
            _write(b"\r\n")
            return
        elif c == b"\x03":
            source = bytearray()
        elif c != b"\x04":
            source.extend(c)
        elif source:
            _write(b"OK")
            _execute(source)
            _write(b">")
            source = bytearray()
        else:
            _write(b"OK\r\nMPY: soft reboot\r\n")
            wires.soft_reset(1)


def _execute(source):
    error = None
    if source:
        error = _run(_compile_and_run, source)
    _write(b"\x04")
    if error:
        text = io.StringIO()
        sys.print_exception(error, text)
        _write(text.getvalue())
    _write(b"\x04")


def _compile_and_run(source):
    exec(compile(bytes(source), "<stdin>", "exec"), _globals)


def _line(source):
    try:
        code = compile(source, "<stdin>", "eval")
    except SyntaxError:
        exec(source, _globals)
    else:
        value = eval(code, _globals)
        if value is not None:
            print(repr(value))


def _friendly_repl():
    print("MicroPython v%d.%d.%d; %s" % (_sys.implementation[1][:3] + (_sys.implementation[2],)))
    print('Type "help()" for more information.')
    block = ""
    line = ""
    _write(b">>> ")
    while True:
        c = _read()
        if c == b"\x01":
            return
        if c == b"\x04" and not line and not block:
            _write(b"\r\nMPY: soft reboot\r\n")
            wires.soft_reset(0)
        elif c == b"\x03":
            _write(b"\r\n>>> ")
            block = line = ""
        elif c in b"\x7f\x08":
            if line:
                line = line[:-1]
                _write(b"\x08 \x08")
        elif c == b"\r":
            _write(b"\r\n")
            block += line + "\n"
            if line and (line[-1] == ":" or line[0] in " \t"):
                line = ""
                _write(b"... ")
                continue
            line = ""
            if block.strip():
                error = _run(_line, block)
                if error:
                    _show(error)
                wires.weigh()
            block = ""
            _write(b">>> ")
        elif c >= b" " or c == b"\t":
            line += c.decode()
            _write(c)


_raw = wires.starts_raw()
_mount()
gc.collect()
if _file("boot.py") and not _raw:
    _file("main.py")
wires.weigh()
while True:
    try:
        if _raw:
            _raw_repl()
            _raw = 0
        else:
            _friendly_repl()
            _raw = 1
    except KeyboardInterrupt:
        pass  # it came between the end of some code and the prompt
