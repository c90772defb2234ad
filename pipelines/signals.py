"""Signals that stop a run: it finishes its step, saves a checkpoint, and exits with code 3."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# SIGTERM from a batch system, SLURM's warning before the walltime, a closed terminal.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopOnSignals:
    """Context in which STOP_SIGNALS and Ctrl-C set `is_asked`; a second Ctrl-C interrupts at once.

    Outside the main thread, which alone receives signals, it does nothing.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopOnSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (*STOP_SIGNALS, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as set by `nohup`
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
