"""What of a server's log is a fault, and what is vLLM's way of ending."""

from __future__ import annotations

import re

_BEGIN = "Traceback (most recent call last)"
#: vLLM ends its engine before the task that waits for the engine's next output, which then says so.
_ENDING = ("[shutdown] API server: shutdown triggered", "AsyncLLM output_handler failed.", "EngineDeadError")
#: Lines that a traceback takes at most, here.
_LONGEST = 40


def tracebacks(log: str) -> list[str]:
    """Return the last lines of all tracebacks but the one with which vLLM itself ends after a signal."""
    lines = log.splitlines()
    found = []
    for place, line in enumerate(lines):
        if _BEGIN not in line:
            continue
        process = re.match(r"\(\w+ pid=\d+\) ", line)
        own = process[0] if process else ""
        block = [one for one in lines[place + 1 : place + _LONGEST] if one.startswith(own)]
        last = next(
            (one for one in block if re.search(r"(^|\] )[\w.]*(Error|Exception|Interrupt)\b", one)), "?"
        )
        triggered, failed, dead = _ENDING
        before = lines[:place]
        if (
            dead in last
            and any(failed in one for one in before[-3:])
            and any(triggered in one for one in before)
        ):
            continue
        found.append(last)
    return found
