"""Peak memory of one training step on the CPU, recipe by recipe.

    python -m zoo.bench.memory recipes/tiny/nsa.yaml recipes/tiny/ansa.yaml --seq-len 16384

One row of `seq_len` random tokens, forward, loss, backward, one AdamW step. Each recipe is measured in a process of its
own, because the operating system's peak never falls again. The baseline is that process with torch imported.
"""

import argparse
import resource
import subprocess
import sys
import time


def step_memory(path: str, seq_len: int) -> tuple[float, float, float]:
    """(baseline, peak, seconds): resident megabytes before the model is built and at the highest, time of the step."""
    import torch

    import zoo

    recipe = zoo.load_recipe(path)
    baseline_mb = _peak_mb()
    model = zoo.build_model(recipe)
    optimiser = torch.optim.AdamW(model.parameters())
    generator = torch.Generator().manual_seed(recipe.seed)
    tokens_BT = torch.randint(recipe.model.vocab_size, (1, seq_len + 1), generator=generator)
    start_s = time.perf_counter()
    model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
    optimiser.step()
    return baseline_mb, _peak_mb(), time.perf_counter() - start_s


def _peak_mb() -> float:
    scale = 1024 if sys.platform == "linux" else 1024 * 1024  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def main() -> None:
    """Measure every recipe named on the command line and print a table."""
    parser = argparse.ArgumentParser(description="Peak memory of one training step on the CPU.")
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seq-len", type=int, default=16384, help="tokens in the one row (default 16384)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the child process of one recipe
    arguments = parser.parse_args()
    if arguments.here:
        print(*step_memory(arguments.recipes[0], arguments.seq_len))
        return
    print(f"{'recipe':40} {'T':>7} {'imports MB':>11} {'peak MB':>9} {'step s':>7}")
    for path in arguments.recipes:
        command = [sys.executable, "-m", "zoo.bench.memory", path, "--seq-len", str(arguments.seq_len), "--here"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        baseline_mb, peak_mb, step_s = (float(number) for number in output.split()[-3:])
        print(f"{path:40} {arguments.seq_len:>7} {baseline_mb:>11.0f} {peak_mb:>9.0f} {step_s:>7.1f}")


if __name__ == "__main__":
    main()
