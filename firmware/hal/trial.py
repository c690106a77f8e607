"""Files that are changed from afar: a configuration on trial, and the board's secrets.

`/trial.json` holds what is tried: {"boots", "result": the record that is due, "config", "secrets",
"why" once it is over}. It outlives every reset and is counted by each boot; after `_BOOTS` of them
that came to no end it is not tried again, after twice as many it is forgotten. `/config.json` and
`/secrets.json` stay as they are until it is kept.

A file is written aside, measured and renamed: it is the old one or the new one, whole.
"""

import json
import os

from wattlock.errors import StorageError

_DIR = "/"
_FILE = "trial.json"
_NEW = "new.json"
_BOOTS = 3


def _get(name):
    try:
        with open(_DIR + name) as f:
            return json.load(f)
    except (OSError, ValueError) as e:
        raise StorageError("cannot read %s: %s" % (name, e))


def _put(name, value):
    try:
        with open(_DIR + _NEW, "w") as f:
            json.dump(value, f)
            f.flush()
            size = f.tell()
        if os.stat(_DIR + _NEW)[6] != size:  # a full file system drops without a word
            raise StorageError("%s: some bytes did not get there" % name)
        os.rename(_DIR + _NEW, _DIR + name)
    except OSError as e:
        raise StorageError("cannot write %s: %s" % (name, e))


def _merged(kept, changes):
    for name in changes:
        kept.setdefault(name, {}).update(changes[name])
    return kept


def _trial(row):
    """What the agent keeps of a trial: the id of its command; `running`: this boot is under it;
    `why`: it is over, for this reason; `refused`: it did not pass the check. A plain object, so
    that nothing of this module stays with it."""
    return {
        "id": row["result"]["command_id"],
        "running": False,
        "refused": False,
        "why": row.get("why"),
    }


def store(result, data):
    """The trial of the next boot; durable on return. Raises StorageError."""
    row = {"boots": 0, "result": result}
    for part in ("config", "secrets"):
        row[part] = data.get(part)
    _put(_FILE, row)
    return _trial(row)


def begin():
    """The trial of this boot, counted, or None. Called where the file is there."""
    try:
        row = _get(_FILE)
        trial = _trial(row)
        row["boots"] += 1
        if row["boots"] > 2 * _BOOTS:
            raise StorageError("not even what became of it can be told")
    except (StorageError, KeyError, TypeError):
        os.remove(_DIR + _FILE)  # nobody's word, or nobody's any more
        return None
    if trial["why"] is None and row["boots"] > _BOOTS:
        trial["why"] = "did not come up in %d boots" % _BOOTS
    try:
        _put(_FILE, row)
        trial["running"] = trial["why"] is None
    except StorageError:
        trial["why"] = trial["why"] or "the file system does not take it"
    return trial


def texts(config, secrets):
    """(config.json, secrets.json) as they are tried, from the texts of those that are kept."""
    row = _get(_FILE)
    if row.get("config"):
        config = json.dumps(row["config"])
    if row.get("secrets"):
        secrets = json.dumps(_merged(json.loads(secrets), row["secrets"]))
    return config, secrets


def result():
    """The record that is due. Raises StorageError."""
    return _get(_FILE)["result"]


def keep():
    """From now on it is the board's configuration. Raises StorageError."""
    row = _get(_FILE)
    if row.get("secrets"):
        _put("secrets.json", _merged(secrets(), row["secrets"]))
    if row.get("config"):
        _put("config.json", row["config"])


def end(why):
    """It is over, whatever comes next. Raises StorageError."""
    row = _get(_FILE)
    row["why"] = why
    _put(_FILE, row)


def drop():
    """It is on record. Raises StorageError."""
    try:
        os.remove(_DIR + _FILE)
    except OSError as e:
        raise StorageError("cannot remove %s: %s" % (_FILE, e))


def secrets():
    """What secrets.json holds. Raises StorageError."""
    return _get("secrets.json")


def change_secrets(changes):
    """Replace members of secrets.json; None takes one out. Raises StorageError."""
    kept = secrets()
    for name in changes:
        if changes[name] is None:
            kept.pop(name, None)
        else:
            kept[name] = changes[name]
    _put("secrets.json", kept)
