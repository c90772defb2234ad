"""CUDA graphs: a function of tensors, captured once per combination of shapes, then replayed.

A temporal model launches hundreds of kernels that take a few microseconds each, and launching them
from Python takes several times as long as running them. A graph launches all of them at once.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..manifests.errors import first_line

MAX_GRAPHS = 16  # of different shapes; others run eagerly

Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


class CudaGraphs:
    """Function that runs as a CUDA graph once the shapes of its arguments have come up before.

    Args:
        function: takes tensors on the device and returns a tensor. It must launch the same work
            for all values, and never wait for the device.
        device: CUDA device.
        num_eager: number of calls of each combination of shapes that run eagerly; they allocate
            what the graph keeps using, such as the state of an optimizer.

    Attributes:
        is_capturing: whether the function is being captured rather than run.
        fault: why no graph could be captured; None otherwise.
    """

    def __init__(
        self, function: Callable[..., Tensor], device: torch.device, *, num_eager: int
    ) -> None:
        self.is_capturing = False
        self.fault: str | None = None
        self._function = function
        self._device = device
        self._num_eager = num_eager
        self._num_calls: Counter[Shapes] = Counter()
        self._graphs: dict[Shapes, tuple[list[Tensor], Callable[[], object], Tensor]] = {}
        self._stream: Any = None
        self._pool: Any = None

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Call the function; arguments may be on the CPU."""
        shapes = tuple((one.shape, one.dtype) for one in arguments)
        if shapes not in self._graphs:
            self._num_calls[shapes] += 1
            is_due = self._num_calls[shapes] > self._num_eager and len(self._graphs) < MAX_GRAPHS
            if self.fault is not None or not is_due or not self._add(shapes, arguments):
                there = [one.to(self._device, non_blocking=True) for one in arguments]
                return self._run(lambda: self._function(*there))
        inputs, replay, output = self._graphs[shapes]
        for kept, given in zip(inputs, arguments, strict=True):
            kept.copy_(given, non_blocking=True)
        replay()
        return output.clone()

    def _add(self, shapes: Shapes, arguments: tuple[Tensor, ...]) -> bool:
        """Capture a graph; return whether that was possible."""
        inputs = [one.to(self._device, copy=True) for one in arguments]
        self.is_capturing = True
        try:
            replay, output = self._capture(lambda: self._function(*inputs))
        except RuntimeError as error:
            self.fault = first_line(error)
            warnings.warn(f"no CUDA graph can be captured, which is slower: {error}", stacklevel=2)
            return False
        finally:
            self.is_capturing = False
        self._graphs[shapes] = inputs, replay, output
        return True

    def _run(self, call: Callable[[], Tensor]) -> Tensor:
        """Run a call eagerly, on the stream of the captures, as CUDA graphs ask for."""
        with self._on_stream():
            return call()

    def _capture(self, call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Capture a call without running it; return the graph's `replay`, and its output."""
        with self._on_stream():  # creates the stream
            pass
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # Threads that load batches may pin memory meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                output = call()
        finally:
            torch.cuda.set_stream(current)  # a failed capture does not
        # All graphs share their memory: no result but the output, which is copied, outlives a call.
        self._pool = graph.pool()
        return graph.replay, output

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


def graph_length(num_tokens: int) -> int:
    """Return the length to which sequences are padded, so that few lengths occur.

    There are eight lengths from one power of two to the next.

    >>> [graph_length(length) for length in (5, 16, 17, 250, 4001)]
    [5, 16, 18, 256, 4096]
    """
    step = 1 << max(0, (num_tokens - 1).bit_length() - 4)
    return -(-num_tokens // step) * step
