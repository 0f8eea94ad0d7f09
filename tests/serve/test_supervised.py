"""Nothing that is started here outlives who started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.serve import supervised

ROOT = Path(__file__).resolve().parents[2]

#: A server in small: a child in its session, one in its own session, and a grandchild there whose parent has ended.
FAMILY = """
import os, subprocess, sys, time
idle = [sys.executable, "-c", "import time; time.sleep(600)"]
leave = "import subprocess as s, sys; print(s.Popen(sys.argv[1:], stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
orphan = subprocess.check_output([sys.executable, "-c", leave, *idle], start_new_session=True)
near, far = (subprocess.Popen(idle, stdout=2, start_new_session=apart) for apart in (False, True))
sys.stdout.write(f"{os.getpid()} {near.pid} {far.pid} {int(orphan)}\\n")
sys.stdout.flush()
"""

#: A test in small: it starts a family, and says who they are.
PARENT = f"""
import subprocess, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.serve import supervised
family = [sys.executable, "-c", {FAMILY + "time.sleep(600)"!r}]
process = supervised.start(family, stdout=subprocess.PIPE, text=True)
sys.stdout.write(f"{{process.pid}} {{process.stdout.readline()}}")
sys.stdout.flush()
"""


def living(processes: list[int]) -> list[int]:
    """Return those that are there and have not ended."""
    found = []
    for process in processes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(process)
    return found


def gone(processes: list[int]) -> bool:
    until = time.monotonic() + 20
    while living(processes) and time.monotonic() < until:
        time.sleep(0.02)
    return not living(processes)


def family_of(parent: subprocess.Popen[str]) -> list[int]:
    assert parent.stdout is not None
    found = [int(word) for word in parent.stdout.readline().split()]
    assert len(found) == 5, "a supervisor, a server and its three"
    assert living(found) == found
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_no_family_outlives_its_parent(number: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT + "import time; time.sleep(600)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        family = family_of(parent)
        parent.send_signal(number)
        assert parent.wait(20) == -number
    assert gone(family)


def test_ending_it_ends_the_family() -> None:
    process = supervised.start(
        [sys.executable, "-c", FAMILY + "time.sleep(600)"], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        family = [int(word) for word in process.stdout.readline().split()]
        assert living(family) == family
        assert sorted(supervised.descendants(process.pid)) == sorted(family)
        supervised.end(process)
    assert living(family) == []
    supervised.end(process)


def test_a_thread_may_start_it_and_end() -> None:
    started: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: started.append(supervised.start(["sleep", "600"])))
    thread.start()
    thread.join()
    try:
        time.sleep(0.3)
        assert started[0].poll() is None
    finally:
        supervised.end(started[0])


def test_a_forked_child_does_not_keep_it_alive() -> None:
    # The child of a fork has all that the parent had open, and lives on.
    fork = "import os, time\nif os.fork() == 0:\n    time.sleep(600)\nos.kill(os.getpid(), 9)"
    command = [sys.executable, "-c", PARENT + fork]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        try:
            family = family_of(parent)
            assert gone(family)
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_what_a_command_leaves_behind_ends_with_it() -> None:
    started = time.monotonic()
    done = supervised.run([sys.executable, "-c", FAMILY + "sys.exit(3)"], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == 3
    assert gone([int(word) for word in done.stdout.split()])
    assert time.monotonic() - started >= supervised.GRACE, "they have time to end by themselves"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_it_ends_as_the_command_does(number: signal.Signals) -> None:
    done = supervised.run(["sh", "-c", f"kill -{int(number)} $$"], timeout=60)
    assert done.returncode == -number


def test_a_signal_goes_on_to_the_command() -> None:
    code = "import signal, sys\nprint('ready', flush=True)\nassert signal.sigwait([15]) == 15\nsys.exit(7)"
    blocked = f"import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [15])\n{code}"
    process = supervised.start([sys.executable, "-c", blocked], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(20) == 7
    process.stdout.close()


def test_it_is_a_pipe_between_texts() -> None:
    done = supervised.run(["cat"], given="é\n" * 100_000, stdout=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stdout) == (0, "é\n" * 100_000)
    missing = supervised.run(["/no/such/command"], stderr=subprocess.PIPE, timeout=60)
    assert missing.returncode == 127
    assert "No such file" in missing.stderr
    with pytest.raises(subprocess.TimeoutExpired):
        supervised.run(["sleep", "600"], timeout=0.2)


def test_the_supervisor_itself_is_killed() -> None:
    process = supervised.start(["sleep", "600"])
    until = time.monotonic() + 20
    children: list[int] = []
    while not children and time.monotonic() < until:
        children = [
            int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ]
    process.kill()
    process.wait(20)
    assert gone(children)
