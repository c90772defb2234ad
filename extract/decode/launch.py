"""Starting decoder processes, and the worker's end of the connections to them."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Protocol

from .limits import KEEP_FREED_MEMORY, Limits
from .protocol import FrameSlots, Message, SharedFrames, receive, send

_START = (
    # With the parent's own search path: `-m` would put the current folder first.
    "import sys; sys.path[:] = {path!r}; from {module} import main; main()"
)


class Child:
    """A decoder process, and the other ends of its connections.

    Args:
        module: module whose `main` it runs.
        num_connections: number of connections.
        arguments: its arguments, behind the descriptors of the connections, with commas between
            them, and of a pipe that closes when this process ends.
        inherited: further file descriptors that it gets.

    Attributes:
        is_ready: whether it has begun to serve requests.
    """

    def __init__(
        self,
        module: str,
        num_connections: int,
        arguments: Sequence[object],
        inherited: Sequence[int] = (),
    ) -> None:
        self.is_ready = False
        self._ending = threading.Lock()  # threads share the process of a GPU's engines
        pairs = [socket.socketpair() for _ in range(num_connections)]
        theirs = [pair[1] for pair in pairs]
        lifeline, self._lifeline = os.pipe()
        descriptors = [one.fileno() for one in theirs]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `kill`
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", _START.format(path=sys.path, module=module)),
                *(",".join(map(str, descriptors)), str(lifeline), *map(str, arguments)),
            ],
            pass_fds=(*descriptors, lifeline, *inherited),
            env={**os.environ, **KEEP_FREED_MEMORY},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )
        self.connections = [Connection(ours.detach()) for ours, _ in pairs]
        for one in theirs:
            one.close()
        os.close(lifeline)

    def exit_code(self) -> int:
        """Return the exit code of a process that is gone or does not answer."""
        try:
            return self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def last_output(self) -> str:
        """Return the end of what the process has written to its standard error."""
        with self._ending:
            if self._errors.closed:
                return ""
            self._errors.seek(0)
            return self._errors.read()[-2000:].decode(errors="replace").strip()

    def kill(self) -> None:
        """Kill the process; its connections stay open."""
        self.process.kill()
        self.process.wait()
        with self._ending:
            if not self._errors.closed:
                os.close(self._lifeline)
                self._errors.close()


class Link:
    """One connection to a decoder process, with the memory for frames that belongs to it.

    Args:
        child: the process.
        connection: one of its connections.
        slots: the memory.
    """

    def __init__(self, child: Child, connection: Connection, slots: FrameSlots) -> None:
        self.child = child
        self.connection = connection
        self.slots = slots
        self.last_heard = time.monotonic()

    def receive(self) -> Message | None:
        """Return a message that has arrived; None if the process is gone."""
        try:
            message = receive(self.connection)
        except (EOFError, OSError):
            return None
        self.last_heard = time.monotonic()
        return message

    def send(self, message: Message) -> None:
        """Send a message; a dead process shows when its next message is waited for."""
        self.last_heard = time.monotonic()
        with contextlib.suppress(OSError):
            send(self.connection, message)

    def has_ended(self) -> bool:
        """Return whether a process that was ready is gone, without anything to do."""
        return self.child.is_ready and self.child.process.poll() is not None

    def kill(self) -> None:
        """Kill the process, and close this connection."""
        self.child.kill()
        self.connection.close()


class EngineLauncher(Protocol):
    """Starts the process that decodes with the engines of a GPU.

    Attributes:
        num_threads: number of its threads, each with a connection of its own.
    """

    num_threads: int

    def launch(self, limits: Limits) -> list[Link]:
        """Start the process; return its connections.

        Raises:
            NvdecFaultError: the engines cannot be used.
        """


def launch_decoder(
    limits: Limits, pin: Callable[[int, int], Callable[[], None]] | None = None
) -> Link:
    """Start a decoder process, which decodes on the CPU.

    Args:
        limits: its limits.
        pin: see `SharedFrames`.
    """
    slots = SharedFrames(limits.max_pixels, pin=pin)
    child = Child(
        "vtnpipe.extract.decode.process",
        1,
        (slots.descriptor, limits.memory_bytes, *limits.arguments),
        [slots.descriptor],
    )
    return Link(child, child.connections[0], slots)
