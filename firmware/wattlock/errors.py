"""Exceptions that somebody catches.

Texts name the field, the value and the remedy, never a secret.
"""


class ConfigError(Exception):
    """The configuration cannot be used. Caught by the deploy tool and by `main.py`."""


class StorageError(Exception):
    """The file system did not take or give what was asked. Caught by the journal's callers."""


class LinkError(Exception):
    """The link to the gateway failed and must be rebuilt. Caught by the uplink shell."""
