"""Files that are changed from afar: a configuration on trial, and the board's secrets.

`/trial.json` holds what is tried: {"boots", "result": the record that is due, "config", "secrets",
"why" once it is over}. It outlives every reset and is counted by each boot; after `_BOOTS` of them
that came to no end it is not tried again. `/config.json` and `/secrets.json` stay as they are
until it is kept.

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


class Trial:
    """`result`: the record that is due; `running`: this boot is under it; `why`: it is over, for
    this reason; `refused`: it did not pass the check."""

    def __init__(self, result):
        self.result = result
        self.running = self.refused = False
        self.why = None

    def texts(self, config, secrets):
        """(config.json, secrets.json) as they are tried, from the texts of those that are kept."""
        row = _get(_FILE)
        if row.get("config"):
            config = json.dumps(row["config"])
        if row.get("secrets"):
            secrets = json.dumps(_merged(json.loads(secrets), row["secrets"]))
        return config, secrets

    def keep(self):
        """From now on it is the board's configuration. Raises StorageError."""
        row = _get(_FILE)
        if row.get("secrets"):
            _put("secrets.json", _merged(secrets(), row["secrets"]))
        if row.get("config"):
            _put("config.json", row["config"])

    def end(self, why):
        """It is over, whatever comes next. Raises StorageError."""
        row = _get(_FILE)
        row["why"] = why
        _put(_FILE, row)
        self.why = why

    def drop(self):
        """It is on record. Raises StorageError."""
        try:
            os.remove(_DIR + _FILE)
        except OSError as e:
            raise StorageError("cannot remove %s: %s" % (_FILE, e))


def store(result, data):
    """The trial of the next boot; durable on return. Raises StorageError."""
    _put(
        _FILE,
        {
            "boots": 0,
            "result": result,
            "config": data.get("config"),
            "secrets": data.get("secrets"),
        },
    )
    return Trial(result)


def begin():
    """The trial of this boot, counted, or None. Called where the file is there."""
    try:
        row = _get(_FILE)
        trial = Trial(row["result"])
        row["boots"] += 1
        trial.why = row.get("why")
    except (StorageError, KeyError, TypeError):
        os.remove(_DIR + _FILE)  # nobody's word
        return None
    if trial.why is None and row["boots"] > _BOOTS:
        trial.why = "did not come up in %d boots" % _BOOTS
    if trial.why is None:
        try:
            _put(_FILE, row)
            trial.running = True
        except StorageError:
            trial.why = "the file system does not take it"
    return trial


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
