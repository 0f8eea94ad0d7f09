"""Addresses as they may stand in messages and logs."""

from __future__ import annotations

import re

__all__ = ["without_secrets"]


def without_secrets(address: str) -> str:
    """Return an address without the user, the password and the query, where secrets stand.

    Examples
    --------
    >>> without_secrets("redis://me:secret@cache:6379/0?password=secret")
    'redis://…@cache:6379/0?…'
    """
    # Up to the last "@": a password may hold one.
    return re.sub(r"\?.*", "?…", re.sub(r"://.*@", "://…@", address, flags=re.DOTALL), flags=re.DOTALL)
