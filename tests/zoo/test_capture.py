"""A CUDA graph whose capture fails leaves the process as it was."""

import contextlib

import pytest
import torch

from zoo.model import capture


@pytest.mark.gpu
def test_random_numbers_can_be_drawn_after_a_failed_capture():
    """Of the device's own generator, which torch registers with every graph; and they are those that come next."""
    torch.cuda.manual_seed(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(5)
    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError), capture.captured(torch.cuda.CUDAGraph()):
        torch.rand(3, device="cuda").sum().item()  # waits for the device
    torch.cuda.set_stream(stream)
    assert torch.equal(torch.rand(3, device="cuda"), expected)


@pytest.mark.gpu
def test_a_capture_that_succeeds_replays_new_random_numbers():
    graph, drawn = torch.cuda.CUDAGraph(), torch.zeros(3, device="cuda")
    with capture.captured(graph):
        drawn.copy_(torch.rand(3, device="cuda"))
    graph.replay()
    first = drawn.clone()
    graph.replay()
    assert not torch.equal(drawn, first)


@pytest.mark.parametrize("fails", [False, True])
def test_the_state_is_put_back_only_after_a_failure(fails, monkeypatch):
    """Without a GPU, by a generator that records what is done to it."""

    class Generator:
        restored = None

        def clone_state(self):
            return "the state before"

        def graphsafe_set_state(self, state):
            self.restored = state

    generator, given = Generator(), {}

    @contextlib.contextmanager
    def graph(graph, **settings):
        given.update(settings)
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    outcome = pytest.raises(ValueError, match="inside") if fails else contextlib.nullcontext()
    with outcome, capture.captured(None, pool=7):
        if fails:
            raise ValueError("inside")
    assert given == {"pool": 7, "capture_error_mode": "thread_local"}
    assert generator.restored == ("the state before" if fails else None)
