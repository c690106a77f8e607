"""A configuration that came from afar, at the start: tried, counted, put into its place.

`/trial.json` outlives every reset. Each boot counts it; after `_BOOTS` of them that came to no end
it is not tried again, after twice as many it is forgotten. `/kept.json` has stood the trial: each
boot writes `/config.json` and `/secrets.json` from it, until they are there. `setup.py` writes
both. Loaded where one of them is there, and forgotten.
"""

import json
import os

from wattlock.errors import StorageError

from . import setup

_BOOTS = 3


def begin():
    """The trial of this boot, counted, or None. Called where the file is there."""
    try:
        row = setup.get(setup.TRIAL)
        row["result"]["command_id"]
        trial = setup.trial(row["result"])
        row["boots"] += 1
        if row["boots"] > 2 * _BOOTS:
            raise StorageError("not even what became of it can be told")
    except (StorageError, KeyError, TypeError):
        _remove(setup.TRIAL)  # nobody's word, or nobody's any more
        return None
    if row["boots"] > _BOOTS:
        trial["why"] = "did not come up in %d boots" % _BOOTS
    try:
        setup.put(setup.TRIAL, row)
        trial["running"] = trial["why"] is None
    except StorageError:
        trial["why"] = trial["why"] or "the file system does not take it"
    return trial


def _merged(kept, changes):
    for name in changes:
        kept.setdefault(name, {}).update(changes[name])
    return kept


def texts(config, secrets, name=setup.TRIAL):
    """(config.json, secrets.json) as they are tried, from the texts of those that are kept."""
    row = setup.get(name)
    if row.get("config"):
        config = json.dumps(row["config"])
    if row.get("secrets"):
        secrets = json.dumps(_merged(json.loads(secrets), row["secrets"]))
    return config, secrets


def apply(config, secrets):
    """(config.json, secrets.json) with what is to be kept, from the texts of those that are there.
    Called where the file is there, by each boot until they could be written."""
    new = texts(config, secrets, setup.KEPT)
    try:
        if new[1] != secrets:
            setup.write("secrets.json", lambda f: f.write(new[1]))
        if new[0] != config:
            setup.write("config.json", lambda f: f.write(new[0]))
    except StorageError:
        return new
    _remove(setup.KEPT)
    return new


def _remove(name):
    try:
        os.remove(setup.DIR + name)
    except OSError:
        pass  # a flash that does not take it: the next boot comes here again
