"""Calls go one way, kernels <- blocks <- zoo, and what answers at once imports nothing heavy."""

import ast
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "composer", "streaming", "transformers", "datasets", "numpy")
NEEDLESS = ("asyncio", "attr", "jinja2", "matplotlib", "multiprocessing", "pygments", "rich", "scipy", "tokenizers")
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
LIGHT += ["counting.cache_sizes", "counting.memory_needed", "memory", "bench.decode_report", "inference.command"]
LIGHT += ["training.config"]
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


# The floors of zoo/, the lowest first: a module imports from its own floor and from those below. The longest name that
# fits a module counts, so that what a recipe says of data and training (no torch) lies below what carries it out.
FLOORS = [
    ("errors", "terminal", "tables", "sparkline", "files", "json_text", "new_folder", "processes", "child", "extras",
     "parts", "address_space", "memory"),
    ("recipe", "feed_forward", "data.config", "training.config", "training.duration", "training.schedules",
     "training.optimizers", "evaluation.registry", "evaluation.groups", "evaluation.task", "evaluation.errors"),
    ("counting",),
    ("model", "data", "feed_forward.dense", "feed_forward.moe", "training.names", "counting.run_cost"),
    ("runs",),
    ("inference",),
    ("evaluation", "interop.folder", "interop.errors"),
    ("training", "training.optimizers.adamw"),
    ("export", "interop"),
    ("report",),
    ("bench", "study"),
    ("docs", "cli.examples"),
    ("cli", "api", "runs.handle"),
    ("docs.hooks", "__main__"),
]  # fmt: skip


def imported(path: Path, running: bool = False) -> set[str]:
    """Every module that a file imports, at the top or inside a function; running: without those for types alone."""
    names: set[str] = set()
    nodes = list(ast.walk(ast.parse(path.read_text())))
    for_types = {
        id(inner)
        for node in nodes
        if running and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in nodes:
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.fixture(scope="module")
def calls() -> dict[str, set[str]]:
    """Module of zoo/ (without blocks and kernels) -> those of zoo/ that it imports. A name from a package is the
    package's, unless it is that of a module."""
    files = {}
    for path in sorted((ROOT / "zoo").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] not in ("blocks", "kernels", "recipes"):
            files[".".join(parts).removesuffix(".__init__")] = path
    found = {}
    for module, path in files.items():
        names = imported(path, running=True) & set(files)
        found[module] = {name for name in names if not any(other.startswith(f"{name}.") for other in names)} - {module}
    return found


def floor(module: str) -> int:
    """The floor of a module, by the longest name that fits it."""
    names = {f"zoo.{name}": number for number, room in enumerate(FLOORS) for name in room}
    while module not in names:
        assert "." in module, "a new module or room: enter it in FLOORS"
        module = module.rpartition(".")[0]
    return names[module]


def test_rooms_import_from_their_own_floor_and_below(calls):
    wrong = [
        f"{module} imports {name}, of a higher floor"
        for module, names in calls.items()
        for name in names - {"zoo"}
        if floor(name) > floor(module)
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle(calls):
    left = dict(calls)
    while free := [module for module, names in left.items() if not names & set(left)]:
        left = {module: names for module, names in left.items() if module not in free}
    assert sorted(left) == [], "these modules are part of a circle, or import one that is"


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


LIGER = """
import sys
from importlib.util import find_spec
from zoo.model import fused
fused._import_liger()
import liger_kernel.ops.cross_entropy
assert not {"peft", "sklearn", "transformers"} & set(sys.modules)
assert liger_kernel.utils.PEFT_AVAILABLE == (find_spec("peft") is not None)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is for Linux")
def test_the_kernel_of_the_loss_is_imported_without_peft_and_transformers():
    done = subprocess.run([sys.executable, "-c", LIGER], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


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


WATCHED = """
import gc, importlib.metadata, io, os, sys, zoo.cli
def refuse(*given, **named):
    raise AssertionError("the installed packages were searched")
importlib.metadata.distributions = refuse
importlib.metadata.Distribution.discover = refuse
os.environ["PYDANTIC_DISABLE_PLUGINS"] = "true"  # as the command sets it
collections = []
gc.callbacks.append(lambda phase, found: collections.append(phase) if phase == "start" else None)
sys.stdout = sys.stderr = io.StringIO()
code = zoo.cli.run({command})
said, sys.stdout, sys.stderr = sys.stdout.getvalue(), sys.__stdout__, sys.__stderr__
assert code == {code} and gc.isenabled(), said
assert len(collections) <= 6, len(collections)
print(*sys.modules)
"""
OF_PARTS = ("zoo.blocks.kinds.", "zoo.blocks.patterns.", "zoo.blocks.projections.", "zoo.blocks.positions.",
            "zoo.feed_forward.", "zoo.evaluation.tasks", "zoo.training.optimizers.")  # fmt: skip
FULL = {"blocks.kinds.full", "blocks.patterns.full_config", "blocks.patterns.base", "blocks.projections.base",
        "blocks.projections.gqa_config", "blocks.positions.base", "blocks.positions.none_config",
        "blocks.positions.rotary_config", "feed_forward.base", "feed_forward.dense_config",
        "training.optimizers.base", "training.optimizers.adamw_config"}  # fmt: skip


LOOKING = {"cli", "cli.app", "cli.examples", "cli.looking", "cli.main", "cli.options", "cli.starting"}


@pytest.mark.parametrize(
    ("command", "code", "most", "parts"),
    [
        (["show", "zoo:tiny/full"], 0, 370, FULL),
        (["show", "zoo:nothing"], 2, 355, None),
        (["train", "zoo:tiny/full", "--set", "model.d_model=0"], 2, 365, FULL),
        (["--help"], 0, 390, set()),
    ],
    ids=["show", "no such recipe", "wrong value", "help"],
)
def test_a_command_that_looks_imports_only_what_it_needs(command, code, most, parts):
    """Of parts those that the recipe names, of commands the one that is called, and of libraries pydantic, typer and
    yaml: `zoo show` answers in 0.6 s. It searches neither the installed packages nor, more than a few times, for
    garbage.

    most: modules, of which half are pydantic's and typer's, and in a help text rich's; parts: None if any may be there.
    """
    watched = WATCHED.format(command=command, code=code)
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    modules = done.stdout.split()
    found = {name.removeprefix("zoo.") for name in modules if name.startswith(OF_PARTS)}
    assert parts is None or found == parts
    assert len(modules) <= most
    needless = {*HEAVY, *NEEDLESS} - ({"rich", "attr", "pygments"} if command == ["--help"] else set())
    assert not needless & set(modules)
    if command[0] == "show":
        assert {name.removeprefix("zoo.") for name in modules if name.startswith("zoo.cli")} == LOOKING


ENDING = """
import atexit, gc, io, sys
sys.argv = ["zoo", "--version"]
if {torch}:
    import torch
atexit.register(lambda: print(len(gc.get_objects()) < 1_000))
from zoo.cli import main
main()
"""


@pytest.mark.parametrize("torch", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_last_search_for_garbage_is_left_out_where_torch_is_not_loaded(torch):
    done = subprocess.run([sys.executable, "-c", ENDING.format(torch=torch)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split()[-1] == str(not torch), done.stderr


def test_no_module_is_left_out_of_the_repository():
    """A pattern of .gitignore may match a room: runs/ once kept new files of zoo/runs out of every commit."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folders = ("zoo", "blocks", "kernels", "recipes", "tests")
    modules = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = "\n".join(str(path.relative_to(ROOT)) for path in modules if path.resolve().is_relative_to(ROOT.resolve()))
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", "--stdin"]
    done = subprocess.run(command, input=names, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("not a git repository, as in an unpacked sdist")
    assert done.stdout == ""
