"""The door: finds the application slot, wires the agent to the board, and catches what escapes.

Whatever ends the agent, the contactors open. An error restarts the board. A configuration that
cannot be used is named on the console and waits there for a better one. Ctrl-C gives the REPL.
"""

import gc
import sys


def _read(name):
    with open(name) as f:
        return f.read()


def _site(slot, spec):
    """The checked (config, secrets). The module that checks them is only needed now, and goes."""
    import os

    import wattlock
    from wattlock import config

    meters = [name[:-5] for name in os.listdir("/%s/meters" % slot)]
    site = config.load(_read("/config.json"), spec, meters)
    secrets = config.load_secrets(_read("/secrets.json"))
    del wattlock.config, sys.modules["wattlock.config"]
    return site, secrets


def main():
    try:
        slot = _read("/slot").strip()
    except OSError:
        print("wattlock: no application here; `make deploy` puts one on the board")
        return
    sys.path.insert(0, "/" + slot)
    import json
    import time

    import machine
    from wattlock.errors import ConfigError

    try:
        spec = json.loads(_read("/board.json"))
        site, secrets = _site(slot, spec)
    except (ConfigError, OSError) as e:
        print("wattlock: cannot start:", e)
        return
    gc.collect()  # what is loaded stays for good: nothing between its pieces
    from hal import watchdog
    from hal.board import Board
    from wattlock import app, modbus

    gc.collect()
    from wattlock.registers import Meter

    def meter(key):
        return Meter(json.loads(_read("/%s/meters/%s.json" % (slot, key))))

    board = None
    try:
        board = Board(site, secrets, spec, slot, meter, modbus)
        gc.collect()
        app.build(site, secrets, board).run()
    except KeyboardInterrupt:
        board and board.safe()
        watchdog.widen()
        print("wattlock: stopped by Ctrl-C; outputs are safe, reset to go on")
    except BaseException as e:
        board and board.safe()
        sys.print_exception(e)
        time.sleep(2)  # what cannot start does not hammer flash, network and console
        machine.reset()


main()
