"""Composer and Streaming are imported without packages that training does not use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.processes import processor
from zoo.training.lean_import import OF_COMPOSER, OF_STREAMING

ROOT = Path(__file__).parents[3]
LEFT_OUT = "was left out when zoo.training imported Composer and Streaming"


def _run(code: str, *paths: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_both_are_imported_without_them_and_others_get_the_real_ones():
    out = _run(
        "import sys\n"
        "from zoo.training.lean_import import import_composer, import_streaming\n"
        "of_composer, of_streaming = import_composer(), import_streaming()\n"
        "print(sorted(of_composer))\n"
        "print(sorted(of_streaming))\n"
        "print(sorted((of_composer | of_streaming) & {name.partition('.')[0] for name in sys.modules}))\n"
        "import composer, scipy, streaming, zoo.training.engine\n"
        "print(composer.Trainer.__name__, streaming.StreamingDataset.__name__, scipy.__file__ is not None)\n"
        "print(import_composer(), import_streaming())\n"
    )
    of_composer, of_streaming, loaded, after, again = out.splitlines()
    # If one is missing it has become superfluous.
    assert set(OF_COMPOSER.stand_ins) <= set(eval(of_composer)) <= {*OF_COMPOSER.stand_ins, *OF_COMPOSER.absent}
    assert set(eval(of_streaming)) == set(OF_STREAMING.stand_ins)
    assert loaded == "[]"
    assert after == "Trainer StreamingDataset True"
    assert again == "set() set()"


@pytest.mark.slow
def test_composer_gets_the_name_of_the_processor_without_cpuinfo():
    code = "from composer.utils import collect_env; print(collect_env.get_composer_env_dict()['cpu_model'])"
    lean = "from zoo.training.lean_import import import_composer; import_composer(); "
    for before in ("", "import composer, cpuinfo; cpuinfo.get_cpu_info = None; "):  # the second calls None if asked
        assert _run(before + lean + code).strip() == processor()


def test_a_class_that_inherits_from_a_placeholder_says_what_was_left_out(tmp_path):
    (tmp_path / "streaming.py").write_text(
        "from abc import ABC\nfrom torchvision.datasets import VisionDataset\n"
        "class Images(ABC, VisionDataset):\n    pass\n"
    )
    out = _run(
        "from zoo.training.lean_import import import_streaming\n"
        "print(import_streaming())\n"
        "import streaming\n"
        "try:\n"
        "    streaming.Images()\n"
        "except ImportError as error:\n"
        "    print(error)\n",
        tmp_path,
    )
    left_out, error = out.splitlines()
    assert left_out == "{'torchvision'}"
    name = "torchvision.datasets.VisionDataset"
    assert error == f"{name} {LEFT_OUT}; import torchvision before zoo.training"


@pytest.mark.slow
def test_training_imports_none_of_them_later(tmp_path):
    """Nor what Composer imports to put algorithms in order, when a Trainer is made: zoo.training.composer_fixes."""
    out = _run(
        "import sys\n"
        "from zoo.cli import main\n"
        f"sys.argv = ['zoo', 'train', 'zoo:tiny/full', '--run-dir', {str(tmp_path / 'run')!r},\n"
        "            '--set', 'train.duration=2ba',\n"
        "            '--set', 'train.schedule.warmup=1ba', '--set', 'eval.batches=1']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as ended:\n"
        "    print('ended', ended.code)\n"
        "names = 'composer.algorithms', 'transformers', 'torchvision', 'sklearn', 'scipy', 'peft', 'composer.trainer'\n"
        "print(*[name for name in names if name in sys.modules])\n"
    )
    assert out.splitlines()[-2:] == ["ended 0", "composer.trainer"]


def test_a_composer_that_uses_one_at_once_is_imported_with_all(tmp_path):
    (tmp_path / "composer.py").write_text("import mcli\nvalue = mcli.make()\n")
    (tmp_path / "mcli.py").write_text("def make():\n    return 'real'\n")
    out = _run(
        "from zoo.training.lean_import import _import, OF_COMPOSER\n"
        "left_out = _import('composer', OF_COMPOSER, ('composer',))\n"
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
        "from zoo.training.lean_import import _import, OF_COMPOSER\n"
        "left_out = _import('composer', OF_COMPOSER, ('composer',))\n"
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
    assert error == f"scipy.signal.other {LEFT_OUT}; import scipy before zoo.training"
