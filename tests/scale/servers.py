"""A server of Redis' protocol on the loopback interface, and a line to it that can fail."""

from __future__ import annotations

import contextlib
import selectors
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Literal, Self

from tests.scale.needs import server_command

if TYPE_CHECKING:
    from pathlib import Path

#: What a line does with bytes: hand them on, keep them for ever, hand back one now and then, or hang up.
Mode = Literal["pass", "stall", "drip", "hang up"]


class Server:
    """A server with an empty memory, on a port of its own; ends with the block."""

    def __init__(self, folder: Path, *, memory: str = "256mb") -> None:
        self.folder, self.memory = folder, memory
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "no",
            "maxmemory": self.memory,
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen([*server_command(), *arguments], stdout=subprocess.DEVNULL)
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"the server did not start (exit code {self._process.poll()})")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Line:
    """A port of the loopback interface that leads to another, and can be made to fail."""

    def __init__(self, port: int) -> None:
        self.mode: Mode = "pass"
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            caller, _ = self._listener.accept()
            threading.Thread(target=self._connect, args=(caller,), daemon=True).start()

    def _connect(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):
            if self.mode == "stall":
                self._stall(caller)
            if self.mode == "hang up" or self._ended.is_set():
                return
            with socket.create_connection(("127.0.0.1", self._to)) as server:
                self._carry(caller, server)

    def _stall(self, caller: socket.socket) -> None:
        while self.mode == "stall" and not self._ended.wait(0.02):
            # The caller may hang up meanwhile: nobody is to be answered then.
            caller.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                if not caller.recv(1, socket.MSG_PEEK):
                    return
            caller.setblocking(True)

    def _carry(self, caller: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(caller, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, caller)
            while not self._ended.is_set():
                for key, _ in ready.select(0.05):
                    source: socket.socket = key.fileobj  # type: ignore[assignment]
                    if self.mode == "stall":
                        self._ended.wait(0.02)
                        continue
                    if self.mode == "hang up":
                        return
                    drip = self.mode == "drip" and source is server
                    if drip:
                        self._ended.wait(0.02)
                    content = source.recv(1 if drip else 1 << 16)
                    if not content:
                        return
                    key.data.sendall(content)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
