"""Calls go one way, kernels <- blocks <- zoo, and what answers at once imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "composer", "streaming", "transformers", "datasets", "numpy")
LIGHT = ["errors", "recipe.schedule", "recipe.yaml_reader", "recipe.checking", "recipe", "recipe.schema", "recipe.keys"]
LIGHT += [
    "counting.model_cost",
    "counting.run_cost",
    "cli",
    "report.show",
    "runs.listing",
    "runs.folder",
    "data.config",
]
LIGHT += ["counting.cache_sizes", "bench.memory_needed", "bench.decode_report", "inference.command", "training.config"]
LIGHT += [
    "blocks.registry",
    "blocks.config",
    "blocks",
    "blocks.interface",
    "blocks.resolved",
    "parts",
    "feed_forward.dense_config",
    "cli.study",
    "study.config",
    "study.expand",
    "study.estimate",
    "interop.architecture",
    "interop.importing",
]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize(("room", "may"), [("kernels", ("zoo.kernels",)), ("blocks", ("zoo.kernels", "zoo.blocks"))])
def test_calls_go_one_way(room, may):
    files = list((ROOT / room).rglob("*.py"))
    assert len(files) > 5
    for path in files:
        ours = {name for name in imported(path) if name.split(".")[0] in ("zoo", "blocks", "kernels")} - {"zoo"}
        assert all(name.startswith(may) for name in ours), f"{path.relative_to(ROOT)}: {ours}"


def test_kernels_need_only_torch_and_triton():
    """And, where they are chosen, the kernels of flash-linear-attention."""
    outside = {name.split(".")[0] for path in (ROOT / "kernels").rglob("*.py") for name in imported(path)}
    assert outside - set(sys.stdlib_module_names) <= {"zoo", "torch", "triton", "fla"}


def heavy_after(code: str) -> list[str]:
    tail = f"; import sys; print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stderr.split()


def test_what_answers_at_once_imports_nothing_heavy():
    assert heavy_after("; ".join(f"import zoo.{module}" for module in LIGHT)) == []


@pytest.mark.parametrize(
    "command",
    [
        ["show", "recipes/ansa_340m.yaml"],
        ["train", "recipes/ansa_340m.yaml", "--set", "model.d_model=0"],
        ["blocks", "ansa"],
        ["schema"],
        ["generate", "runs/quickstart"],
        ["--help"],
    ],
    ids=lambda command: command[0],
)
def test_commands_that_answer_at_once_import_nothing_heavy(command):
    assert heavy_after(f"from zoo.cli import run; import io, sys; sys.stderr = io.StringIO(); run({command}); "
                       "sys.stderr = sys.__stderr__") == []  # fmt: skip
