"""Starts processes that never outlive the one that started them, whatever ends it, nor leave children of their own.

    python tests/serve/supervised.py DESCRIPTOR COMMAND …

Between the two stands this file as a process of its own. It waits for the command's end, and for the end of a pipe that
only the starting process can write to: that comes even where a SIGKILL leaves nobody to clean up. Then it ends all that
the command has started, in its own session or in another: who loses its parent becomes the supervisor's child. (A
signal that a parent's death sends would end one process, not its children, and come when a mere thread has ended.)
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Of `prctl`, in Linux' `sys/prctl.h`.
PARENT_DEATH_SIGNAL, CHILD_SUBREAPER = 1, 36
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
#: Has a supervisor end all without a word.
END = signal.SIGUSR1
#: Seconds in which what a command has started may end by itself, once the command has.
GRACE = 5.0


@functools.cache
def _alive() -> int:
    """Return a pipe's end for supervisors: nothing is ever written to the other, which ends with this process."""
    reading, writing = os.pipe()
    # Who is forked and not started anew is not the one whose life counts.
    os.register_at_fork(after_in_child=functools.partial(os.close, writing))
    return reading


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a command in a session of its own, with options of `subprocess.Popen`.

    The process is the supervisor: signals go on to the command, and it ends as the command does.
    """
    alive = _alive()
    supervisor = [sys.executable, "-I", "-S", __file__, str(alive)]
    return subprocess.Popen([*supervisor, *command], pass_fds=(alive,), start_new_session=True, **options)


def end(process: subprocess.Popen[Any]) -> None:
    """End a command and all that it has started, by SIGKILL."""
    process.send_signal(END)
    process.wait(60)


def run(
    command: Sequence[str], *, given: str = "", timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Do a command to its end, as `subprocess.run` with text; nothing of it is left if that takes too long."""
    process = start(command, stdin=subprocess.PIPE, text=True, **options)
    try:
        out, err = process.communicate(given, timeout)
    except BaseException:
        end(process)
        raise
    return subprocess.CompletedProcess(list(command), process.returncode, out, err)


def descendants(ancestor: int) -> list[int]:
    """Return the children of a process, and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name may have spaces and brackets in it; what follows its last bracket has none.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = list(parents.get(ancestor, []))
    for process in found:
        found += parents.get(process, [])
    return found


def _end_descendants() -> None:
    # Until there is none: one may have started another since it was looked for.
    while found := descendants(os.getpid()):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        _reap()
        time.sleep(0.01)


def _reap() -> bool:
    """Bury who has ended; return whether anybody is left."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
        return True
    return False


def _become(command: list[str], prctl: Any, supervisor: int) -> None:
    """Go on as the command, which ends if its supervisor is killed."""
    prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(127)  # it was killed before that
    # Python ignores these, and what is started would, too.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error}\n")
        sys.stderr.flush()
        os._exit(127)


def supervise(alive: int, command: list[str]) -> int:
    """Do a command until it or the pipe ends; return its exit code, negative for a signal."""
    prctl = ctypes.CDLL(None).prctl
    prctl(CHILD_SUBREAPER, 1, 0, 0, 0)
    os.set_inheritable(alive, False)
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, prctl, supervisor)
    for number in FORWARDED:
        signal.signal(number, lambda came, _: os.kill(child, came))
    signal.signal(END, lambda *_: _end_descendants())
    ended = os.pidfd_open(child)
    if ended not in select.select([alive, ended], [], [])[0]:
        _end_descendants()
        return -signal.SIGKILL
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:
        return -signal.SIGKILL  # it was among those that were ended
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    until = time.monotonic() + GRACE
    while _reap() and time.monotonic() < until and not select.select([alive], [], [], 0.02)[0]:
        pass
    _end_descendants()
    return code


def main() -> None:
    """End as the command does."""
    code = supervise(int(sys.argv[1]), sys.argv[2:])
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
