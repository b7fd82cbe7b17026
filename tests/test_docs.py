"""Examples in README and docs/*.md: recipes load, Python runs, commands exist and run, numbers are what we count."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import zoo
from zoo.cli import app
from zoo.counting import model_cost as cost
from zoo.errors import RecipeError
from zoo.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)(?: title=.*)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OWN_TESTS = ["own_block.md", "own_part.md", "tutorial.md"]  # tested in tests/zoo/docs
QUICK = ["show", "recipes", "blocks", "parts", "schema", "cost", "compare"]  # need no run


def fenced(language):
    """(text) of every fenced block of a language, named by page and line."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match[1] == language:
                line = text[: match.start()].count("\n") + 2
                yield pytest.param(match[2], id=f"{page.name}:{line}")


def except_own_tests(params):
    return [param for param in params if not param.id.startswith(tuple(OWN_TESTS))]


@pytest.mark.parametrize("text", except_own_tests(fenced("yaml")))
def test_a_recipe_in_the_docs_loads(text, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    values = yaml.safe_load(text)
    if not values.get("extends", "zoo:").startswith("zoo:"):
        text = text.replace(values["extends"], str(ROOT / values["extends"]))
    path = tmp_path / "example.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = load_recipe(path)
    assert len(recipe.model.expanded()) >= 1


@pytest.mark.parametrize("text", list(fenced("study")))
def test_a_study_in_the_docs_has_runs(text, tmp_path):
    from zoo.study.config import load_study
    from zoo.study.expand import expand

    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    assert len(list(expand(load_study(path)).choosing())) == 9


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """runs/quickstart as `zoo train zoo:quickstart` leaves it, but for the training."""
    from zoo.runs.folder import RunFolder
    from zoo.training.final_weights import export

    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml")
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "quickstart")
    folder.path.mkdir()
    folder.recipe.write_text(recipe.dump(), encoding="utf-8")
    export(folder, recipe, zoo.build_model(recipe).state_dict())
    return folder.path


@pytest.fixture
def like_a_checkout(tmp_path, monkeypatch, run_folder):
    """The working directory: runs/quickstart and every recipe of the pages under its name."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(run_folder)
    for param in except_own_tests(fenced("yaml")):
        (tmp_path / f"{yaml.safe_load(param.values[0])['name']}.yaml").write_text(param.values[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def exported(text, like_a_checkout, tmp_path, monkeypatch):
    """exported/ as `zoo export` leaves it, for a text that reads it; transformers copies its module to `modules`."""
    if '"exported"' in text:
        from zoo.export.writing import export

        export("runs/quickstart", "exported")
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture
def one_thread():
    """Tiny models on a machine with other work: threads that wait for one another took 76 s of what takes 4."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("text", except_own_tests(fenced("python")))
def test_python_in_the_docs_runs(text, like_a_checkout, exported, one_thread):
    for name in re.findall(r"\bzoo\.(\w+)", text):
        assert hasattr(zoo, name) or importlib.util.find_spec(f"zoo.{name}")
    exec(compile(text, "example", "exec"), {})


def commands():
    """Every `zoo ...` line of a fenced block of commands, as (arguments)."""
    for param in (*fenced(""), *fenced("bash")):
        for line in param.values[0].splitlines():
            words = shlex.split(line, comments=True) if re.match(r"(\S+ )*zoo \w", line) else []
            if "zoo" in words:
                yield pytest.param(words[words.index("zoo") + 1 :], id=f"{param.id} {line.split('#')[0].strip()}")


@pytest.mark.parametrize("arguments", list(commands()))
def test_a_command_in_the_docs_exists_with_its_options(arguments):
    import typer

    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert arguments[0] in command.commands, f"no such command: {arguments[0]}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {a for a in arguments if a.startswith("-")} <= known


def quick_commands():
    """Those of `commands` that end soon; the page of `zoo compare` has tests of its own."""
    slow = ("--train", "--measure", "runs/", "-o", "--html", "--pattern")
    for param in except_own_tests(commands()):
        arguments = param.values[0]
        if arguments[0] in QUICK and not any(word.startswith(slow) for word in arguments):
            yield param


@pytest.mark.parametrize("arguments", list(quick_commands()))
def test_a_command_in_the_docs_runs(arguments, like_a_checkout, capsys):
    from zoo import cli

    assert cli.run(arguments) == 0, capsys.readouterr().err


def consoles():
    """(command, what it is said to print) of every `$ zoo ...` of a `console` block that needs no run of a user."""
    for param in fenced("console"):
        for text in re.split(r"^\$ ", param.values[0], flags=re.MULTILINE)[1:]:
            line, _, printed = text.partition("\n")
            arguments = shlex.split(line)
            if arguments[0] == "zoo" and arguments[1] in QUICK:
                yield pytest.param(arguments[1:], printed, id=f"{param.id} {line}")


@pytest.mark.parametrize(("arguments", "printed"), list(consoles()))
def test_a_command_in_the_docs_prints_what_the_page_says(arguments, printed, like_a_checkout, capsys):
    """`...` stands for any text."""
    from zoo import cli

    cli.run(arguments)
    found = "".join(capsys.readouterr())
    pattern = ".*".join(re.escape(part.strip("\n")) for part in printed.split("..."))
    assert re.search(pattern, "\n".join(line.rstrip() for line in found.splitlines()), re.DOTALL), found


def test_there_are_commands_whose_output_is_shown():
    assert len(list(consoles())) >= 5


def test_the_targets_of_make_in_the_docs_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    found = {name for page in PAGES for name in re.findall(r"^make ([\w-]+)", page.read_text(encoding="utf-8"), re.M)}
    assert found
    assert found <= targets


def test_the_links_of_the_docs_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("https://", "reference/", "tutorial.ipynb")):  # generated; see test_pages.py
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs/log").iterdir()), ids=lambda page: page.stem)
def test_a_page_of_the_log_has_question_setup_results_verdict_and_a_row_of_the_index(page):
    text, index = page.read_text(encoding="utf-8"), (ROOT / "docs/log.md").read_text(encoding="utf-8")
    date = re.fullmatch(r"(\d{4}-\d\d-\d\d)-[a-z0-9-]+\.md", page.name)[1]
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    found = [word for heading in headings for word in ("Question", "Setup", "esults", "Verdict") if word in heading]
    assert found == ["Question", "Setup", "esults", "Verdict"]
    assert f"\n# {date}: " in text
    assert text.startswith("---\nsearch:\n  exclude: true\n---\n")
    row = re.search(rf"^\| {date} \| \[.+?\]\(log/{re.escape(page.name)}\) \| .+? \| .+ \|$", index, re.MULTILINE)
    assert row, f"docs/log.md has no row of {page.name} with question and verdict"


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_mistakes_in_the_readme_are_told_like_that(tmp_path, monkeypatch):
    recipe = next(p.values[0] for p in fenced("yaml") if p.id.startswith("README"))
    shown = next(p.values[0] for p in fenced("") if p.id.startswith("README") and "n_heds" in p.values[0])
    for right, wrong in (
        ("window: 64", "window: 0"),
        ("kind: full, n_heads", "kind: full, n_heds"),
        ("local*3 global", "local*3 gloabl"),
    ):
        assert right in recipe
        recipe = recipe.replace(right, wrong)
    (tmp_path / "mine.yaml").write_text(recipe, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as refused:
        load_recipe("mine.yaml")
    assert str(refused.value).strip() == shown.strip()


def mib(n_bytes):
    """Three digits, or whole MiB."""
    value = n_bytes / 2**20
    return f"{value:.0f} MiB" if value >= 100 else f"{value:.1f} MiB"


def test_the_numbers_in_the_readme_are_the_recipes():
    rows = re.findall(r"^\| `(zoo:[\w/]+)` \| ([\d.]+)M \| (.*) \|$", readme(), re.MULTILINE)
    assert len(rows) == 6
    for name, parameters, rest in rows:
        recipe = load_recipe(name)
        at = {seq_len: cost.model_cost(recipe.model, seq_len) for seq_len in (8192, 32768)}
        cells = [
            f"{at[8192].flops_per_token / 1e6:,.0f}M",
            f"{at[8192].cache_nominal_bytes // 8192:,}",
            *(mib(b) for c in at.values() for b in (c.cache_nominal_bytes, c.cache_held_bytes)),
        ]
        assert [parameters, *rest.split(" | ")] == [f"{at[8192].parameters['total'] / 1e6:.1f}", *cells]


def test_help_names_the_commands_of_the_readme():
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(name in shown for name in ("train", "show", "blocks", "schema", "data"))
