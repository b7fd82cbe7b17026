"""Recording work on a GPU as a CUDA graph, so that a failure leaves nothing behind."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def captured(graph: torch.cuda.CUDAGraph, **settings: Any) -> Iterator[None]:
    """`torch.cuda.graph` for the length of a `with`; settings: its own.

    torch 2.11 registers the device's random numbers with each graph. If the capture fails, they stay in the state of
    being captured, and the next draw of this process raises "Offset increment outside graph capture": they are put
    back here.  thread_local: a loader's thread pins memory meanwhile, which a capture of the whole process forbids.
    """
    device = torch.cuda.current_device()  # starts CUDA, which makes the generators
    generator = torch.cuda.default_generators[device]
    before = generator.clone_state()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local", **settings):
            yield
    except BaseException:
        generator.graphsafe_set_state(before)
        raise
