"""The boot record: until it is durable, nothing else is. Loaded for that, and forgotten."""

from . import __version__


def begin(app):
    app.boot = app.station.boot + 1
    time = app.station.clock
    last_up = app.station.last[1]
    info = {
        "t": "boot",
        "fw": __version__,
        "cause": app.board.cause,
        "slot": app.board.slot,
        "board": app.config["board"],
        "evses": [
            {"evse": e["n"], "meter": e["meter"], "phases": e["phases"], "max_a": e["max_a"]}
            for e in app.config["evses"]
        ],
    }
    for row in info["evses"]:
        meter = app.posts[row["evse"]].meter
        if hasattr(meter, "lost_max_wh"):
            row["lost_max_wh"] = meter.lost_max_wh
    kept = app.board.alive_at
    if kept is not None and kept[0] == app.station.boot and kept[1] > last_up:
        info["alive_ms"] = last_up = kept[1]
    if time.floor_ms is not None:
        app.outage_from = time.floor_ms + last_up - time.floor_up
    if app.write([info] + app.wrong, False):
        app.booted = True
        app.booted_up = app.up_ms()
        kept = app.board.recall_time()
        if kept is not None:
            app.station.clock.hold(kept[0], kept[1], app.up_ms())
        elif time.floor_ms is not None:
            app.board.link.at_least(time.floor_ms)
        app.wrong = []
        app.board.say(
            "wattlock %s %s boot %d slot %s ready"
            % (__version__, app.config["station_id"], app.boot, app.board.slot)
        )
