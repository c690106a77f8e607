"""The start: reads what the board is told, wires the agent to the board, and is forgotten.

It lives in the slot, so that a configuration is checked by the firmware that is to run with it,
and compiled, so that nothing of it stays: what main.py calls is `build`.
"""

import gc
import sys

KEPT = "kept.json"
TRIAL = "trial.json"
restored = []  # files that came back from their second copy


def read(name):
    with open(name) as f:
        return f.read()


def _needed(name):
    from wattlock.errors import ConfigError

    try:
        return read(name)
    except OSError:
        from hal import keepsake

        text = keepsake.restore(name)
        if text is None:
            raise ConfigError("%s: is missing; `make deploy` or `make provision` brings it" % name)
        print("wattlock: %s was lost; its second copy is in its place" % name)
        restored.append({"t": "event", "what": "restored", "file": name})
        return text


def _keep(slot, meters):
    """See that there is a second copy of what makes this board this station."""
    from hal import keepsake

    paths = ["/%s/meters/%s.json" % (slot, key) for key in meters]
    keepsake.keep(paths + ["/board.json", "/config.json", "/secrets.json", "/slot"])
    _forget("hal.keepsake")


def _site(slot):
    """The checked (board, config, secrets, trial). What checks them is only needed now, and
    goes."""
    import os

    from wattlock import config

    spec = config.parse(_needed("/board.json"), "board.json")
    meters = [name[:-5] for name in os.listdir("/%s/meters" % slot)]
    texts = _needed("/config.json"), _needed("/secrets.json")
    site = trial = None
    there = os.listdir("/")
    if KEPT in there or TRIAL in there:
        from hal import trial as trials

        if KEPT in there:
            texts = trials.apply(*texts)
        if TRIAL in there:
            trial = trials.begin()
    if trial is not None and trial["running"]:
        try:
            tried = trials.texts(*texts)
            site = config.load(tried[0], spec, meters)
            secrets = config.load_secrets(tried[1], site)
        except config.ConfigError as e:
            site = None
            trial["why"] = str(e)
            trial["refused"] = True
            trial["running"] = False
    if site is None:
        site = config.load(texts[0], spec, meters)
        secrets = config.load_secrets(texts[1], site)
    _forget("wattlock.config")
    if "hal.trial" in sys.modules:
        _forget("hal.trial", "hal.setup")
    _keep(slot, meters)
    return spec, site, secrets, trial


def _forget(*names):
    """Code that only starts the agent has done its work: "package.module.Class.function" each."""
    for name in names:
        path = name.split(".")
        owner = sys.modules[path[0]]
        for part in path[1:-1]:
            owner = getattr(owner, part, None)  # not every board has every part
        if name in sys.modules:  # it can be imported again
            delattr(owner, path[-1])
            del sys.modules[name]
        elif owner is not None and hasattr(owner, path[-1]):
            setattr(owner, path[-1], None)  # a class keeps what is deleted


def _board(slot):
    """(board, config, secrets). Nothing else stays of what made them."""
    import json

    spec, site, secrets, trial = _site(slot)
    from wattlock import modbus, registers

    def meter(key):
        description = json.loads(read("/%s/meters/%s.json" % (slot, key)))
        if "signs" not in description:
            return registers.Meter(description)
        from wattlock import signing

        maker = "wattlock.sign_%s" % description["signs"]
        __import__(maker)
        return signing.Meter(description, sys.modules[maker])

    from hal.board import Board

    board = Board(site, secrets, spec, slot, meter, modbus)
    board.trial = trial  # pyright: ignore[reportAttributeAccessIssue]
    _forget(
        "hal.board.Board.__init__",
        "hal.board.Board._bus",
        "hal.board.Board._pulses",
        "hal.board.Board._reader",
        "hal.bus.Bus.add",
        "hal.outputs.Outputs.__init__",
        "hal.pn532.Pn532.__init__",
        "hal.pn532.open_reader",
        "hal.rs485.Rs485.__init__",
        "hal.rs485.open_rs485",
        "hal.rtc.cause",
        "hal.rtc.last_alive",
        "hal.rtc.last_reached",
        "wattlock.registers.Meter.__init__",
        "wattlock.layout",
    )
    if "hal.tcp" not in sys.modules:
        _forget(
            "wattlock.modbus.tcp_check",
            "wattlock.modbus.tcp_frame_size",
            "wattlock.modbus.tcp_read",
            "wattlock.modbus.tcp_reply_size",
            "wattlock.modbus.tcp_stamp",
        )
    return board, site, secrets


def build(slot):
    """(board, agent), ready to run."""
    board, site, secrets = _board(slot)
    gc.collect()
    from wattlock import app

    agent = app.build(site, secrets, board)
    agent.wrong += restored
    _forget(
        "wattlock.app.App.__init__",
        "wattlock.app.build",
        "wattlock.clock.Clock.__init__",
        "wattlock.commands.Inbox.__init__",
        "wattlock.lock.Drive.__init__",
        "wattlock.metering.Ledger.__init__",
        "wattlock.station.Evse.__init__",
        "wattlock.station.Station.__init__",
        "wattlock.uplink.Uplink.__init__",
        "hal.board.Board.shelf",
        "wattlock.evse.Post.__init__",
        "wattlock.journal.Journal.__init__",
        "wattlock.journal.Journal.open",
        "wattlock.journal.Journal._checkpoint",
        "wattlock.journal.Journal._get_now",
        "wattlock.journal._assemble",
        "hal.flash.Flash.names",
        "hal.flash.Flash.reserve",
        "hal.flash.Flash.set_aside",
        "wattlock.station.Station.restore",
    )
    gc.collect()
    board.join(site, secrets)
    for part in ("buses", "link"):
        del site[part]  # the agent keeps the rest
    _forget(
        "hal.board.Board.join",
        "hal.link.Link.__init__",
        "hal.link.Outbox.__init__",
        "hal.mqtt.Mqtt.__init__",
        "hal.wifi.Wifi.__init__",
        "hal.wired.Wired.__init__",
    )
    return board, agent
