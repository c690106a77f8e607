"""Remote: the configuration, changed from afar without locking anybody out.

 1. What comes is stored beside what is there, and tried in the next boot, which comes as soon as
    no session runs. The command's result is the outcome.
 2. It is kept once a gateway's authentic answer has come under it: ACCEPTED. The board restarts
    once more, as it does whenever a trial has run.
 3. It is refused where the configuration's own check does not pass: REJECTED, and the old one runs
    in the same boot. It is rolled back when no answer came in ten minutes, or when several boots
    came to no end: FAILED.
 4. Which board this is, and its key, cannot be set; nor can the key of its certificate, for which
    another certificate can be made.

Loaded for one call, and forgotten.
"""

from . import commands, ocpi
from .errors import StorageError

_SECTIONS = {  # of secrets.json; a private key does not travel
    "mqtt": ("user", "password"),
    "wifi": ("ssid", "password"),
    "tls": ("ca", "cert"),
}
_WHY = 160


def obey(app, command, data):
    """SET_CONFIG."""
    site = data.get("config")
    secrets = data.get("secrets")
    for part in (site, secrets):
        if part is not None and not isinstance(part, dict):
            return app.say(command, ocpi.REJECTED)
    if app.trial is not None or not (site or secrets):
        return app.say(command, ocpi.REJECTED)
    if site and site.get("station_id") != app.config["station_id"]:
        return app.say(command, ocpi.REJECTED)
    for name in secrets or ():
        if name not in _SECTIONS or not isinstance(secrets[name], dict):
            return app.say(command, ocpi.REJECTED)
        for field in secrets[name]:
            if field not in _SECTIONS[name]:
                return app.say(command, ocpi.REJECTED)
    try:
        app.trial = app.board.setup().store(commands.result(command, ocpi.FAILED), data)
    except (StorageError, MemoryError):
        return app.say(command, ocpi.FAILED)
    app.reset_wanted = True
    return True


def turn(app):
    """Bring the trial of this boot to its end: it is over, an answer has come, or none in time.
    The record says which; what the files say follows it, a turn later, in a later boot if need
    be."""
    trial = app.trial
    if not app.booted or not app.may_write():
        return
    record = trial["result"]
    known = app.station.results.get(record["command_id"])
    if known is not None:
        word = commands.word(known)
    else:
        event = {"t": "event", "what": "config", "outcome": "kept"}
        word = ocpi.ACCEPTED
        why = trial["why"]
        if why is None and not app.uplink.greeted:
            why = "no answer of the gateway in time"
        if why is not None:
            word = ocpi.REJECTED if trial["refused"] else ocpi.FAILED
            event["outcome"] = "refused" if trial["refused"] else "rolled_back"
            event["why"] = why[:_WHY]
        record["result"] = word
        app.commit((event, record))
        return
    try:
        setup = app.board.setup()
        if word == ocpi.ACCEPTED:
            setup.keep()
            trial["running"] = True
        else:
            setup.drop()
    except (StorageError, MemoryError) as e:  # again in a second; what was said stands
        app.failed_at = app.ticks
        if isinstance(e, MemoryError):
            app.refuse("part", "remote")
        return
    app.trial = None
    if trial["running"]:  # with the old one again, or with what is kept in its place
        app.reset_wanted = True
