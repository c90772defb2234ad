"""Signals that ask a run to stop: it finishes what it is at, writes what resuming needs, and ends
with exit code 3.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# A cluster's, SLURM's warning, a terminal that is closed; and Ctrl-C, which may come twice.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopOnSignals:
    """A context in which these signals set `is_asked`; Ctrl-C a second time interrupts at once.

    In another than the main thread, which gets no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopOnSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (*STOP_SIGNALS, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` asks
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_asked = True
