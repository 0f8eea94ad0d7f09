"""An experiment: vLLM's block pool, kept by this package's, and block hashes made a prompt at a time.

It comes as a plugin of vLLM, by an entry point of this package, and does nothing unless it is asked for::

    INFER_ACCEL_VLLM_BLOCK_POOL=1 vllm serve MODEL …
"""

from __future__ import annotations

import logging
import os

__all__ = ["KNOWN_VERSIONS", "VARIABLE", "register"]

#: Minor versions of vLLM whose books are known.
KNOWN_VERSIONS = ("0.32", "0.33")
#: The environment variable that asks for it.
VARIABLE = "INFER_ACCEL_VLLM_BLOCK_POOL"

_OFF = ("", "0", "false", "no", "off")
_log = logging.getLogger("infer_accel")


def register() -> bool:
    """Put the pool in the place of vLLM's, if ``INFER_ACCEL_VLLM_BLOCK_POOL`` says so; the entry point's function.

    Engines whose caches are one group of full attention, with prefix caching, take blocks from
    :class:`infer_accel.kvcache.BlockPool`; block hashes are made by :func:`infer_accel.kvcache.hash_blocks`, bit for
    bit those of vLLM. Other engines (windows, states, several groups, EAGLE, context parallelism, KV events) keep
    vLLM's own pool. Calling it again changes nothing.

    Returns
    -------
    bool
        Whether it is in place. With a version of vLLM that is not known, or methods of other parameters, one line of
        the log says so, and vLLM works as before.

    Examples
    --------
    >>> import os
    >>> os.environ.pop("INFER_ACCEL_VLLM_BLOCK_POOL", None) or register()
    False
    """
    if os.environ.get(VARIABLE, "").strip().lower() in _OFF:
        return False
    try:
        from infer_accel.integrations._vllm_blocks import install, versions  # noqa: PLC0415 - vLLM may be another one

        problem = versions.interface_problem()
        if problem is None:
            install.once()
            return True
    except ImportError as error:
        problem = f"vLLM has no such interface ({error}); known to work: {', '.join(KNOWN_VERSIONS)}"
    _log.error("%s is set, and vLLM keeps its own block pool: %s", VARIABLE, problem)
    return False
