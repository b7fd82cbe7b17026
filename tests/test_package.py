"""The sdist and the wheel: built, installed into a fresh environment, and used from a folder of the user's own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ["pyproject.toml", "README.md", "LICENSE", "constraints.txt", "blocks", "kernels", "recipes", "zoo"]
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def environment() -> dict[str, str]:
    """Of the commands: without the variables by which a test run finds the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}


def run(*command: object, cwd: Path) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(kind: str, tree: Path, out: Path) -> Path:
    return out / run(sys.executable, "-c", BUILD, kind, out, cwd=tree).splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that is built from the sdist, as package indexes and distributions build it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    with tarfile.open(build("sdist", tree, out)) as archive:
        archive.extractall(out, filter="data")
    (unpacked,) = (path for path in out.iterdir() if path.is_dir())
    return build("wheel", unpacked, out)


@pytest.fixture(scope="module")
def zoo(wheel, tmp_path_factory) -> Path:
    """`zoo` of a fresh environment with the wheel; what it requires is taken from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    run(sys.executable, *install, wheel, cwd=folder.parent)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=folder).strip())
    (packages / "requirements.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    assert str(folder) in run(python, "-c", "import zoo; print(zoo.__file__)", cwd=folder)
    return folder / "bin" / "zoo"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ZOO_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_wheel_holds_every_recipe_and_module(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    for folder, pattern in (("recipes", "*.yaml"), ("recipes", "*.py"), ("blocks", "*.py"), ("kernels", "*.py")):
        files = {f"zoo/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob(pattern)}
        assert files
        assert files <= held
    assert {"zoo/constraints.txt", *(str(path.relative_to(ROOT)) for path in (ROOT / "zoo").rglob("*.css"))} <= held
    assert not [name for name in held if name.startswith("zoo/docs/")], "it works from a checkout only"
    assert not [name for name in held if name.startswith(("blocks/", "kernels/", "recipes/", "tests/"))]


def test_the_first_steps_from_another_folder(zoo, elsewhere):
    assert "zoo:ansa_340m" in run(zoo, "recipes", cwd=elsewhere)
    run(zoo, "init", "--from", "ansa", "mine.yaml", cwd=elsewhere)
    assert "4 layers  A B A B" in run(zoo, "show", "mine.yaml", cwd=elsewhere)
    assert "24 layers" in run(zoo, "show", "zoo:ansa_340m", cwd=elsewhere)
    (elsewhere / "short.yaml").write_text(
        "name: short\nextends: zoo:tiny/window\ntrain: {duration: 2ba, schedule: {warmup: 0ba}}\n"
    )
    sizes = ["--set", "data.seq_len=32", "--set", "train.batch_size=2", "--set", "eval.batches=1"]
    assert "done: short, 2 batches" in run(zoo, "train", "short.yaml", *sizes, cwd=elsewhere)
    assert "complete" in run(zoo, "runs", cwd=elsewhere)
    assert "runs/short: complete, 2 batches" in run(zoo, "show", "runs/short", cwd=elsewhere)


def test_an_extra_is_installed_by_its_own_requirements(zoo, elsewhere):
    python = zoo.with_name("python")
    found = run(python, "-c", "from zoo.extras import *; print(install_command('study'))", cwd=elsewhere)
    assert found.endswith("zoo/constraints.txt 'ray>=2.40'\n")
