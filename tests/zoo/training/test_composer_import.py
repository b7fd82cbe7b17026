"""Composer is imported without packages that training does not use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.training.composer_import import ABSENT, STAND_INS

ROOT = Path(__file__).parents[3]


def _run(code: str, *paths: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_composer_is_imported_without_them_and_others_get_the_real_ones():
    out = _run(
        "import sys\n"
        "from zoo.training.composer_import import import_composer\n"
        "left_out = import_composer()\n"
        "print(sorted(left_out))\n"
        "print(sorted(left_out & {name.partition('.')[0] for name in sys.modules}))\n"
        "import composer, scipy, zoo.training.engine\n"
        "print(composer.Trainer.__name__, scipy.__file__ is not None, import_composer())\n"
    )
    left_out, loaded, after = out.splitlines()
    assert set(STAND_INS) <= set(eval(left_out)) <= {*STAND_INS, *ABSENT}  # else one has become superfluous
    assert loaded == "[]"
    assert after == "Trainer True set()"


def test_a_composer_that_uses_one_at_once_is_imported_with_all(tmp_path):
    (tmp_path / "composer.py").write_text("import mcli\nvalue = mcli.make()\n")
    (tmp_path / "mcli.py").write_text("def make():\n    return 'real'\n")
    out = _run(
        "from zoo.training.composer_import import import_composer\n"
        "left_out = import_composer()\n"
        "import composer\n"
        "print(composer.value, left_out)\n",
        tmp_path,
    )
    assert out == "real set()\n"


def test_a_package_that_is_loaded_stays(tmp_path):
    (tmp_path / "composer.py").write_text("from mcli import value\nfrom scipy.signal import other\n")
    (tmp_path / "mcli.py").write_text("value = 'real'\n")
    out = _run(
        "import mcli\n"
        "from zoo.training.composer_import import import_composer\n"
        "left_out = import_composer()\n"
        "import composer, sys\n"
        "print(composer.value, left_out, 'scipy' in sys.modules, composer.other)\n"
        "try:\n"
        "    composer.other()\n"
        "except ImportError as error:\n"
        "    print(error)\n",
        tmp_path,
    )
    first, error = out.splitlines()
    assert first.startswith("real {'scipy'} False ")
    assert error == "scipy.signal.other was left out when Composer was imported; import scipy before zoo.training"
