"""The engine of `zoo train` for a benchmark: random tokens, a clock, no checkpoints and no validation."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from composer import Callback, DataSpec

from zoo import data
from zoo.runs.folder import RunFolder
from zoo.training.composer_model import count_tokens
from zoo.training.drawing import Drawing
from zoo.training.engine import Engine
from zoo.training.interrupts import StopRequests
from zoo.training.plan import Plan
from zoo.training.screen import Screen
from zoo.training.setup import Device, Setup
from zoo.training.watchdog import Watchdog

BATCHES = 8  # different ones, taken in turn


@dataclass(frozen=True)
class BenchSetup(Setup):
    """A Setup whose training rows are random tokens, unless there are prepared ones; without validation."""

    def token_bytes(self) -> None:
        return None

    def loader(self, split: str) -> DataSpec | None:
        if split != "train":
            return None
        if self.prepared.rows("train"):
            return super().loader(split)
        device = self.device
        rows = RandomRows(self.recipe, device.per_device, self.prepared.seq_len, self.plan.total, device.rank)
        return DataSpec(rows, get_num_tokens_in_batch=count_tokens)


class RandomRows:
    """Batches of random tokens in pinned memory, each row one document; each device has its own."""

    dataset = None

    def __init__(self, recipe, rows: int, seq_len: int, batches: int, rank: int = 0):
        generator = torch.Generator().manual_seed(recipe.seed + rank)
        self.dataset, self.batch_size, self.n = self, rows, batches
        starts = torch.zeros(rows, seq_len, dtype=torch.bool)
        starts[:, 0] = True
        self.made = []
        for _ in range(min(BATCHES, batches)):
            tokens = torch.randint(recipe.model.vocab_size, (rows, seq_len + 1), generator=generator)
            batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:], "document_starts": starts}
            self.made.append({name: _pinned(tensor) for name, tensor in batch.items()})

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for i in range(self.n):
            yield dict(self.made[i % len(self.made)])

    def close(self) -> None:
        pass


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.contiguous()
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def bench_setup(recipe, folder: Path, batches: int, own_data: bool) -> BenchSetup:
    """What a session of so many batches reads; own_data: prepare the recipe's rows."""
    seq_len = recipe.seq_len
    device = Device.make(recipe.train, seq_len)
    if own_data:
        prepared = data.prepare_for(recipe)
        epoch = prepared.rows("train") // recipe.train.rows(seq_len)
    else:
        settings = {"config": recipe.data, "seq_len": seq_len, "vocab_size": recipe.model.vocab_size}
        prepared = data.PreparedData(**settings, key="", tokenizer=None, streams={"train": (), "validation": ()})
        epoch = batches
    plan = Plan(
        total=batches,
        batch_size=recipe.train.rows(seq_len),
        tokens_per_batch=recipe.train.rows(seq_len) * seq_len,
        batches_per_epoch=epoch,
        eval_every=batches,
        checkpoint_every=batches,
        warmup=1,
        decay=batches - 1,
        schedule=recipe.train.schedule,
    )
    return BenchSetup(recipe, RunFolder(folder), Screen(rank=1), device, prepared, plan, checkpoint=None, run=None)


class _Ticks(Callback):
    """Tells the clock of each batch's end, after the zoo's own callbacks. It stands in for the saver."""

    def __init__(self, clock):
        self.clock = clock

    def batch_end(self, state, logger) -> None:
        self.clock.batch_end()


class BenchEngine(Engine):
    """An Engine that writes metrics as `zoo train` does, and neither checkpoints nor weights."""

    def __init__(self, setup: BenchSetup, requests: StopRequests, clock, drawing: Drawing):
        self.clock = clock
        super().__init__(setup, requests, Watchdog(0, setup.folder.log, "benchmark", str), drawing)

    def _saver(self) -> Callback:
        return _Ticks(self.clock)

    def _make_writers(self) -> list:
        self.setup.screen.start(self.setup.plan, 0)
        return super()._make_writers()
