"""Starting a kernel: whole-number helpers, and smaller tiles where a GPU has too little shared memory."""

import pytest
import torch

triton = pytest.importorskip("triton")


@pytest.fixture
def launching(monkeypatch):
    from zoo.kernels import launching

    monkeypatch.setattr(launching, "_first_that_fits", {})
    monkeypatch.setattr(launching, "_n_tensors", {})
    return launching


class Kernel:
    """Runs tiles of up to `most` rows, as a GPU with little shared memory does, and notes what it was given."""

    def __init__(self, most: int):
        self.most, self.ran = most, []

    def __getitem__(self, grid):
        def start(*arguments, ROWS, WIDTH):
            if self.most < ROWS:
                raise triton.runtime.errors.OutOfResources(ROWS, self.most, "shared memory")
            self.ran.append((grid, arguments, ROWS, WIDTH))

        return start


def launch(launching, kernel):
    tiles = [dict(ROWS=64), dict(ROWS=32), dict(ROWS=16)]
    grid = lambda tile: (launching.cdiv(100, tile["ROWS"]),)  # noqa: E731
    launching.launch(kernel, grid, (7, None), dict(WIDTH=8), tiles, torch.device("cpu"))


def test_the_first_tile_that_fits_is_taken_and_remembered(launching):
    kernel = Kernel(most=32)
    launch(launching, kernel)
    launch(launching, kernel)
    assert kernel.ran == [((4,), (7, None), 32, 8)] * 2
    assert list(launching._first_that_fits.values()) == [1]


def test_nothing_fits(launching):
    with pytest.raises(triton.runtime.errors.OutOfResources, match="shared memory"):
        launch(launching, Kernel(most=8))


def test_tensors_go_before_numbers(launching):
    x = torch.zeros(1)
    assert launching._count_tensors(Kernel(1), (x, None, x, 3, 1.0)) == 3
    with pytest.raises(AssertionError, match="tensors go before numbers"):
        launching._count_tensors(Kernel(1), (x, 3, x))


def test_a_call_that_only_compiles_is_not_remembered(launching, monkeypatch):
    """Triton returns None for it: zoo.training.compile_only."""
    monkeypatch.setattr(launching, "INTERPRETED", False)
    monkeypatch.setattr(launching, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernel, x = Kernel(most=64), torch.zeros(1)
    for _ in range(2):
        launching.launch(kernel, lambda tile: (1,), (x, 7), dict(WIDTH=8), [dict(ROWS=64)], torch.device("cuda", 0))
    assert kernel.ran == [((1,), (x, 7), 64, 8)] * 2
    assert launching._compiled == {}


def test_a_profiler_that_hooks_launches_is_seen(launching, monkeypatch):
    assert not launching._is_watched()
    monkeypatch.setattr(launching._hooks, "launch_enter_hook", print)
    assert launching._is_watched()


def test_whole_number_helpers_are_tritons(launching):
    for n in range(1, 300):
        assert launching.cdiv(n, 16) == (n + 15) // 16
        assert launching.next_power_of_2(n) == triton.next_power_of_2(n)
    assert launching.next_power_of_2(0) == 0
