"""The door: finds the application slot, wires the agent to the board, and catches what escapes.

Whatever ends the agent, the contactors open. An error restarts the board. A configuration that
cannot be used is named on the console and waits there for a better one. Ctrl-C gives the REPL.
"""

import gc
import sys

gc.threshold(2048)  # what is loaded stays for good: little garbage between its pieces

_TRIAL = "trial.json"


def _read(name):
    with open(name) as f:
        return f.read()


def _needed(name):
    from wattlock.errors import ConfigError

    try:
        return _read(name)
    except OSError:
        raise ConfigError("%s: is missing; `make deploy` or `make provision` brings it" % name)


def _site(slot):
    """The checked (board, config, secrets, trial). What checks them is only needed now, and
    goes."""
    import os

    from wattlock import config

    spec = config.parse(_needed("/board.json"), "board.json")
    meters = [name[:-5] for name in os.listdir("/%s/meters" % slot)]
    texts = _needed("/config.json"), _needed("/secrets.json")
    site = trial = None
    if _TRIAL in os.listdir("/"):
        from hal import trial as trials

        trial = trials.begin()
    if trial is not None and trial.running:
        try:
            tried = trial.texts(*texts)
            site = config.load(tried[0], spec, meters)
            secrets = config.load_secrets(tried[1])
        except config.ConfigError as e:
            site = None
            trial.why = str(e)
            trial.refused = True
            trial.running = False
    if site is None:
        site = config.load(texts[0], spec, meters)
        secrets = config.load_secrets(texts[1])
    _forget("wattlock.config")
    return spec, site, secrets, trial


def _forget(*names):
    """Code that only starts the agent has done its work: "package.module.Class.function" each."""
    for name in names:
        path = name.split(".")
        owner = sys.modules[path[0]]
        for part in path[1:-1]:
            owner = getattr(owner, part)
        if name in sys.modules:  # it can be imported again
            delattr(owner, path[-1])
            del sys.modules[name]
        else:
            setattr(owner, path[-1], None)  # a class keeps what is deleted


def _board(slot):
    """(board, config, secrets). Nothing else stays of what made them."""
    import json

    spec, site, secrets, trial = _site(slot)
    from wattlock import modbus
    from wattlock.registers import Meter

    def meter(key):
        description = json.loads(_read("/%s/meters/%s.json" % (slot, key)))
        if "signs" in description:
            from wattlock.signing import SigningMeter

            return SigningMeter(description)
        return Meter(description)

    from hal.board import Board

    board = Board(site, secrets, spec, slot, meter, modbus)
    board.trial = trial  # pyright: ignore[reportAttributeAccessIssue]
    _forget(
        "hal.board.Board.__init__",
        "hal.board.Board._bus",
        "hal.board.Board._pulses",
        "hal.board.Board._reader",
        "hal.mqtt.Mqtt.__init__",
        "hal.rtc.cause",
        "hal.rtc.last_alive",
        "wattlock.registers.Meter.__init__",
        "wattlock.layout",
    )
    return board, site, secrets


def _build(slot):
    """(board, agent), ready to run."""
    board, site, secrets = _board(slot)
    gc.collect()
    from wattlock import app

    agent = app.build(site, secrets, board)
    _forget(
        "wattlock.app.App.__init__",
        "hal.board.Board.shelf",
        "wattlock.evse.Post.__init__",
        "wattlock.journal.Journal.open",
        "wattlock.journal.Journal._checkpoint",
        "wattlock.journal.Journal._get_now",
        "wattlock.journal._assemble",
        "hal.flash.Flash.names",
        "hal.flash.Flash.set_aside",
        "wattlock.station.Station.restore",
    )
    return board, agent


def main():
    try:
        slot = _read("/slot").strip()
    except OSError:
        print("wattlock: no application here; `make deploy` puts one on the board")
        return
    sys.path.insert(0, "/" + slot)
    import os
    import time

    import machine
    from wattlock.errors import ConfigError

    board = None
    try:
        board, agent = _build(slot)
        gc.collect()
        agent.run()
    except KeyboardInterrupt:
        from hal import watchdog

        board and board.safe()
        watchdog.widen()
        print("wattlock: stopped by Ctrl-C; outputs are safe, reset to go on")
    except ConfigError as e:
        from hal import rtc

        print("wattlock: cannot start:", e)
        trying = _TRIAL in os.listdir("/")
        rtc.leave(b"error" if trying else b"hard")  # "hard": whoever brings what is missing resets
        if trying:  # whatever is tried must not end here
            time.sleep(2)
            machine.reset()
    except BaseException as e:
        board and board.safe()
        sys.print_exception(e)
        time.sleep(2)  # what cannot start does not hammer flash, network and console
        if board:
            board.reset(b"error")
        machine.reset()


main()
