"""The process of `zoo bench train` that trains: prints one JSON object.

python -m zoo.bench.train_step recipes/tiny/ansa.yaml --steps 20 --started 1700000000.0
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from zoo.bench.processes import REFUSED, UNCAUGHT, end_with_the_command, refuse
from zoo.bench.train_clock import Clock
from zoo.child import pipe_to_launcher
from zoo.processes import STOP_SIGNALS


def main() -> None:
    """Train a few batches as the command line says and print what was measured."""
    end_with_the_command()
    launcher = pipe_to_launcher()
    if launcher is not None:  # born with them blocked; a benchmark has nothing to finish
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--started", type=float, default=None, help="when the process was started, seconds of time.time"
    )
    parser.add_argument("--data", action="store_true", help="the recipe's own rows instead of random tokens")
    parser.add_argument("--devices", type=int, default=1, help="start so many of these processes, one for each GPU")
    parser.add_argument("--peer", choices=["liger", "liger-compiled"])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--plugin", action="append", default=[])
    arguments = parser.parse_args()
    started = arguments.started or time.time()
    import zoo
    from zoo.blocks import load_plugin
    from zoo.errors import ZooError

    for module in arguments.plugin:  # imported by the command before, so it can be
        load_plugin(module)

    try:
        if arguments.devices > 1:
            from zoo.training.launching import launch

            sys.exit(launch(arguments.devices, _of_one_device(sys.argv[1:]), "zoo.bench.train_step"))
        recipe = zoo.load_recipe(arguments.recipe, overrides=arguments.overrides)
        if arguments.peer:
            from zoo.bench.train_peers import measure_peer

            row = measure_peer(recipe, arguments.peer == "liger-compiled", arguments.steps, started)
        else:
            row = measure_recipe(recipe, arguments.steps, arguments.data, started)
    except ZooError as error:
        if launcher is not None:
            _leave(launcher, str(error), REFUSED)
        refuse(error)
    except Exception as error:
        if launcher is None:
            raise
        from zoo.training.failures import explain

        _leave(launcher, explain(error) or f"{type(error).__name__}: {error}".splitlines()[0], UNCAUGHT)
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(row))


def _leave(launcher: int, message: str, code: int) -> NoReturn:
    """End at once, with the reason for the launcher: the others wait for this process, and it would wait for them."""
    with contextlib.suppress(OSError):
        os.write(launcher, f"{message}\n".encode("utf-8", "replace"))
    if os.environ["RANK"] == "0":  # whose output the launcher leaves to it
        print(message, file=sys.stderr, flush=True)
    os._exit(code)


def _of_one_device(words: list[str]) -> list[str]:
    """The command line of the process of one device."""
    at = words.index("--devices")
    return [*words[:at], *words[at + 2 :]]


def measure_recipe(recipe, steps: int, own_data: bool, started: float) -> dict:
    """Train with the zoo's engine for WARM_UP + steps + PROFILED + 1 batches in a folder that is removed."""
    from zoo.training.ahead import Ahead
    from zoo.training.drawing import Drawing
    from zoo.training.lean_import import import_composer, import_streaming

    with Ahead(recipe) as ahead, Drawing(recipe) as drawing:
        import_composer()
        import_streaming()  # random tokens do without it; `zoo train` does not
        return _measure(recipe, steps, own_data, started, ahead, drawing)


def _measure(recipe, steps: int, own_data: bool, started: float, ahead, drawing) -> dict:
    import torch

    from zoo.bench.train_engine import BenchEngine, bench_setup
    from zoo.training.composer_fixes import end_process_groups, fixed
    from zoo.training.interrupts import StopRequests

    clock = Clock(steps, started)
    clock.part_of_start("imports")
    log = Graphs()
    logging.getLogger("zoo.training").addHandler(log)
    logging.getLogger("zoo.training").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as folder, fixed():
        setup = bench_setup(recipe, Path(folder), clock.total, own_data)
        engine = BenchEngine(setup, StopRequests(quiet=True), clock, drawing)
        clock.part_of_start("model")
        ahead.wait_with_all()
        clock.part_of_start("compiling")
        with engine, torch.autograd.set_multithreading_enabled(False):
            engine.trainer.fit()
        micro_batch = engine.trainer.state.device_train_microbatch_size
        mfu_per_token = engine._mfu_per_token()
        end_process_groups()
    tokens = setup.plan.tokens_per_batch
    row = clock.row(recipe.name, tokens, setup.prepared.seq_len, micro_batch, mfu_per_token)
    return row | {"graph": log.said, "devices": setup.device.world_size}


class Graphs(logging.Handler):
    """What the log says of CUDA graphs: "yes", or why not."""

    said = "no"

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("cuda_graph: "):
            self.said = "yes" if text.endswith("captured") else "no: " + text.partition("not used: ")[2]


if __name__ == "__main__":
    main()
