"""The one traceback that is vLLM's own ending is known by all that it is; every other one is a fault."""

from __future__ import annotations

import pytest
from tests.serve.server_log import tracebacks

SIGNAL = "(APIServer pid=7) INFO 11-22 03:47:25 [launcher.py:254] [shutdown] API server: shutdown triggered"
WORKER = "(EngineCore pid=8) INFO 11-22 03:47:25 [core.py:1499] [shutdown] EngineCore: exiting busy loop"
LINE = "(APIServer pid=7) ERROR 11-22 03:47:25 [async_llm.py:906] "
FAILED = LINE + "AsyncLLM output_handler failed."
BEGIN = LINE + "Traceback (most recent call last):"
MIDDLE = LINE + '  File "/somewhere/async_llm.py", line 849, in output_handler'
DEAD = LINE + "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."
OTHER = LINE + "KeyError: 'request'"


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        ([], []),
        ([SIGNAL, WORKER, FAILED, BEGIN, MIDDLE, WORKER, DEAD], []),
        ([FAILED, BEGIN, MIDDLE, DEAD], [DEAD]),  # nobody had asked it to end
        ([SIGNAL, BEGIN, MIDDLE, DEAD], [DEAD]),
        ([SIGNAL, FAILED, BEGIN, MIDDLE, OTHER], [OTHER]),
        ([FAILED, BEGIN, MIDDLE, DEAD, SIGNAL], [DEAD]),
        (["Traceback (most recent call last):", "  File", "ValueError: no"], ["ValueError: no"]),
        ([BEGIN], ["?"]),
    ],
)
def test_what_is_a_fault(lines: list[str], faults: list[str]) -> None:
    assert tracebacks("\n".join(lines)) == faults
