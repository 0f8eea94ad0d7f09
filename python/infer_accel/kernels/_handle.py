"""What an asynchronous copy leaves in the caller's hands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from infer_accel.errors import ArgumentError, IdError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infer_accel._typing import Stream
    from infer_accel.kernels._device import Launch

__all__ = ["PageCopy"]


class PageCopy:
    """A copy of pages under way on a stream.

    Attributes
    ----------
    event : torch.cuda.Event or None
        It passes when the pages are copied. None where nothing was asynchronous.

    Notes
    -----
    The tensors and tables of the copy are kept until it is done, whether or not the handle is.
    """

    __slots__ = ("_flag", "_kept", "_launch", "event")

    def __init__(
        self, launch: Launch, event: torch.cuda.Event | None, flag: torch.Tensor | None, kept: Sequence[Any]
    ) -> None:
        self.event = event
        self._launch = launch
        self._flag = flag
        self._kept = kept

    def wait(self, stream: Stream | None = None) -> None:
        """Make a stream wait for the copy: torch's current one, or the one that is named. The host goes on.

        Raises
        ------
        ArgumentError
            The copy was captured into a graph, and the stream is not being captured: a replay is waited for by waiting
            for the stream it was given to.
        """
        if self.event is None:
            return
        if stream is None:
            waiting = torch.cuda.current_stream(self._launch.device)
        elif isinstance(stream, torch.cuda.Stream):
            waiting = stream
        else:
            waiting = torch.cuda.ExternalStream(stream.cuda_stream, device=self._launch.device)
        if self._launch.captured and not _is_capturing(waiting):
            message = (
                "wait() came for a copy that was captured into a graph; wait for the stream that replays the graph, or "
                "call synchronize() to wait on the host"
            )
            raise ArgumentError(message, code="argument.capture")
        waiting.wait_event(self.event)

    def synchronize(self) -> None:
        """Wait on the host until the pages are copied.

        Of a copy that was captured into a graph: until the device has done everything it was given.

        Raises
        ------
        IdError
            Ids that lay on the GPU named pages that are not there. Those rows were left out; all others are copied.
        ArgumentError
            The copy is still being captured into a graph: nothing is copied before a replay.
        """
        if self._launch.captured and _is_capturing(torch.cuda.current_stream(self._launch.device)):
            message = (
                "synchronize() came while the copy is being captured; call it after a replay of the graph"
            )
            raise ArgumentError(message, code="argument.capture")
        if self.event is not None and not self._launch.captured:
            self.event.synchronize()
        elif self.event is not None:
            torch.cuda.synchronize(self._launch.device)
        if self._flag is None:
            return
        row = int(self._flag.item())
        if row:
            message = (
                f"row {row - 1} of ids on the GPU named a page that is not there (and others may); rows like it were "
                "left out"
            )
            raise IdError(message, code="id.page")


def _is_capturing(stream: torch.cuda.Stream) -> bool:
    with torch.cuda.stream(stream):
        return bool(torch.cuda.is_current_stream_capturing())
