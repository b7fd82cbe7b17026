"""Choose one tile for each kernel of the linear mixers on this GPU, so that no run has to try them all.

    python -m zoo.bench.linear_tiles --widths 64 128

flash-linear-attention tries every tile of a kernel at its first call with a shape: 266 tiles of ten kernels for
`gated_linear`, each of which has to be compiled. Here they are tried once, for heads of these widths, with and without
packed documents. A kernel gets the tile whose time is nearest to the best one in every shape. They go to a file in
Triton's cache, where later runs on this GPU find them (zoo/kernels/outside.py). Another machine needs a copy of it.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from zoo.files import write_text
from zoo.kernels.documents import Documents
from zoo.kernels.outside import name_of, tile_of, tiles_file

ROWS, TOKENS, HEADS = 1, 8192, 16
LETTERS = {"by_head": False, "by_channel": True}  # one decay a head, or one for each channel of a key
Timings = dict[str, dict[str, float]]  # of a kernel: by shape, then by tile (JSON), milliseconds


class Recorder:
    """The times of all tiles that are tried while it is active, by kernel."""

    def __init__(self) -> None:
        self.found: dict[str, Timings] = {}

    def of(self, run: Callable) -> Callable:
        """A method `run` of an autotuner that also keeps what was timed, for each shape the first time."""

        def recording(tuner: Any, *arguments: Any, **options: Any) -> Any:
            before = set(tuner.cache)
            result = run(tuner, *arguments, **options)
            for key in set(tuner.cache) - before:
                timed = tuner.configs_timings.items()
                times = {json.dumps(tile_of(config)): _median(time) for config, time in timed}
                self.found.setdefault(name_of(tuner), {})[repr(key)] = times
            return result

        return recording


def _median(time: Any) -> float:
    return float(time[0]) if isinstance(time, list | tuple) else float(time)


def choose(timings: Mapping[str, Mapping[str, float]]) -> tuple[str, float] | None:
    """The tile whose largest slow-down over the shapes is smallest, and that slow-down, 1.0 = the best of each shape.

    timings: by shape, then by tile.  None if no tile ran with every shape.
    """
    best = {shape: min(times.values(), default=math.inf) for shape, times in timings.items()}
    tiles = set.intersection(*(set(times) for times in timings.values())) if timings else set()
    worst = {tile: max(times[tile] / best[shape] for shape, times in timings.items()) for tile in sorted(tiles)}
    ran = {tile: slowdown for tile, slowdown in worst.items() if math.isfinite(slowdown)}
    return min(ran.items(), key=lambda pair: pair[1]) if ran else None


def calls(width: int, device: str, tokens: int = TOKENS) -> Iterator[Callable[[], torch.Tensor]]:
    """Every kind of call that linear mixers make with heads of this width, each of which returns what it computed."""
    from zoo.kernels.convolution.fla import short_convolution
    from zoo.kernels.linear.fla import linear_attention

    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        x = torch.randn(ROWS, tokens, *shape, generator=generator, device=device)
        return x.to(torch.bfloat16).requires_grad_()

    starts_BT = torch.zeros(ROWS, tokens, dtype=torch.bool, device=device)
    starts_BT[:, :: max(1, tokens // 4)] = True
    for packed in (None, Documents.from_starts(starts_BT, 4)):
        for by_channel in LETTERS.values():
            for delta in (False, True):
                q, k, v = (drawn(HEADS, width) for _ in range(3))
                k = torch.nn.functional.normalize(k, dim=-1) if delta else k
                decay = -torch.nn.functional.softplus(drawn(HEADS, *([width] if by_channel else [])).float())
                beta_BTH = drawn(HEADS).sigmoid() if delta else None
                settings: dict[str, Any] = {"beta_BTH": beta_BTH, "scale": width**-0.5, "documents": packed}
                settings |= {"state_BHDV": None, "keep_state": False}
                yield partial(_output, linear_attention, q, k, v, decay, **settings)
        x_BTC, weight_CW = drawn(HEADS * width), torch.randn(HEADS * width, 4, device=device, requires_grad=True)
        yield partial(short_convolution, x_BTC, weight_CW, None, documents=packed, tail_BNC=None)


def _output(attention: Callable, *tensors: torch.Tensor, **settings: Any) -> torch.Tensor:
    return attention(*tensors, **settings)[0]


def try_all(widths: list[int], device: str, tokens: int = TOKENS) -> dict[str, Timings]:
    """The times of all tiles, by kernel; forward and backward passes."""
    from triton.runtime.autotuner import Autotuner

    recorder, run = Recorder(), Autotuner.run
    Autotuner.run = recorder.of(run)  # of this process alone, which ends with the measurement
    try:
        for width in widths:
            for call in calls(width, device, tokens):
                call().float().square().mean().backward()
    finally:
        Autotuner.run = run
    return recorder.found


def main() -> None:
    """Measure, write the files, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128], help="of a head's keys and values")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("zoo.bench.linear_tiles: needs a CUDA GPU; there is none")
    file = tiles_file()
    file.unlink(missing_ok=True)
    os.environ["FLA_CACHE_RESULTS"] = "0"  # times of this measurement alone
    tiles = {}
    print(f"{'kernel':76} {'shapes':>6} {'tiles':>5}  the tile's time against the best of a shape, at most")
    for kernel, timings in try_all(arguments.widths, "cuda").items():
        found = choose(timings)
        slowest = "none runs with every shape, so all are tried"
        if found is not None:
            tiles[kernel], slowest = json.loads(found[0]), f"{found[1]:.2f}x"
        print(f"{kernel:76} {len(timings):>6} {max(map(len, timings.values())):>5}  {slowest}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(tiles, indent=1) + "\n")
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
