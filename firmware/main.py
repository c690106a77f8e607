"""The door: finds the application slot, wires the agent to the board, and catches what escapes.

Whatever ends the agent, the contactors open. An error restarts the board. A configuration that
cannot be used is named on the console and waits there for a better one. Ctrl-C gives the REPL.
"""

import sys


def _read(name):
    with open(name) as f:
        return f.read()


def main():
    try:
        slot = _read("/slot").strip()
    except OSError:
        print("wattlock: no application here; `make deploy` puts one on the board")
        return
    sys.path.insert(0, "/" + slot)
    import json
    import os

    import machine
    from hal import watchdog
    from hal.board import Board
    from wattlock import app, config, modbus
    from wattlock.errors import ConfigError
    from wattlock.registers import Meter

    def describe(key):
        return json.loads(_read("/%s/meters/%s.json" % (slot, key)))

    try:
        spec = json.loads(_read("/board.json"))
        meters = [name[:-5] for name in os.listdir("/%s/meters" % slot)]
        site = config.load(_read("/config.json"), spec, meters)
        secrets = config.load_secrets(_read("/secrets.json"))
    except (ConfigError, OSError) as e:
        print("wattlock: cannot start:", e)
        return
    board = None
    try:
        board = Board(site, secrets, spec, slot, lambda key: Meter(describe(key)), modbus)
        app.build(site, secrets, board).run()
    except KeyboardInterrupt:
        board and board.safe()
        watchdog.widen()
        print("wattlock: stopped by Ctrl-C; outputs are safe, reset to go on")
    except BaseException as e:
        board and board.safe()
        sys.print_exception(e)
        machine.reset()


main()
