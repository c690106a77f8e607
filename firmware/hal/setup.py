"""What changes config.json and secrets.json: loaded for one call, and forgotten.

A trial is a file, `/trial.json`: {"boots", "result": the record that is due, "config", "secrets"}.
What became of it is the journal's to say. What is to be kept is renamed, to `/kept.json`, and the
next boot makes the other files of it (`trial.py`): so keeping takes no heap from an agent that
runs, and what was changed in the secrets meanwhile stays.

A file is written aside, measured and renamed: it is the old one or the new one, whole.
"""

import json
import os

from wattlock.errors import StorageError

DIR = "/"
TRIAL = "trial.json"
KEPT = "kept.json"
_NEW = "new.json"


def get(name):
    try:
        with open(DIR + name) as f:
            return json.load(f)
    except (OSError, ValueError) as e:
        raise StorageError("cannot read %s: %s" % (name, e))


def put(name, value):
    write(name, lambda f: json.dump(value, f))


def write(name, fill):
    try:
        with open(DIR + _NEW, "w") as f:
            fill(f)
            f.flush()
            size = f.tell()
        if os.stat(DIR + _NEW)[6] != size:  # a full file system drops without a word
            raise StorageError("%s: some bytes did not get there" % name)
        os.rename(DIR + _NEW, DIR + name)
    except OSError as e:
        raise StorageError("cannot write %s: %s" % (name, e))


def store(result, data):
    """The trial of the next boot; durable on return. Raises StorageError."""
    row = {"boots": 0, "result": result}
    for part in ("config", "secrets"):
        row[part] = data.get(part)
    put(TRIAL, row)
    return trial(result)


def trial(result):
    """What the agent keeps of a trial: `result`: the record that is due; `running`: this boot is
    under it; `why`: it is over, for this reason; `refused`: it did not pass the check. A plain
    object, so that nothing of this module stays with it."""
    return {"result": result, "running": False, "refused": False, "why": None}


def keep():
    """From the next boot on it is the board's configuration. Raises StorageError."""
    try:
        os.rename(DIR + TRIAL, DIR + KEPT)
    except OSError as e:
        raise StorageError("cannot rename %s: %s" % (TRIAL, e))


def drop():
    """It is on record. Raises StorageError."""
    try:
        os.remove(DIR + TRIAL)
    except OSError as e:
        raise StorageError("cannot remove %s: %s" % (TRIAL, e))


def secrets():
    """What secrets.json holds. Raises StorageError."""
    return get("secrets.json")


def put_secrets(secrets):
    """Replace it. Raises StorageError."""
    put("secrets.json", secrets)
