"""After a training TF32 is allowed or not as before, whichever of torch's settings said so."""

import os

import pytest
import torch

from zoo.training.composer_fixes import fixed
from zoo.training.tf32 import settings

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of os.fork, from Python 3.12
BACKENDS = torch.backends
STATES = {
    "as torch begins": lambda: None,
    "the flag": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "no TF32 in cuDNN": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "high precision": lambda: torch.set_float32_matmul_precision("high"),
    "medium precision": lambda: torch.set_float32_matmul_precision("medium"),
    "products by the newest setting": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "IEEE products by the newest setting": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "ieee"),
    "convolutions by the newest setting": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "all by the newest setting": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
}


def in_a_process(check) -> int:
    """The exit code of a copy of this process that runs `check`: the settings are the process's."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = check()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("trains", [True, False], ids=["on a GPU", "without one"])
def test_settings_are_as_before(state, trains):
    def check() -> int:
        STATES[state]()
        before = settings()
        with fixed():
            if trains:  # what Composer's DeviceGPU does
                BACKENDS.cuda.matmul.allow_tf32 = BACKENDS.cudnn.allow_tf32 = True
        return 0 if settings() == before else 3

    assert in_a_process(check) == 0


def test_the_check_can_fail():
    def check() -> int:
        before = settings()
        BACKENDS.cuda.matmul.allow_tf32 = True
        return 0 if settings() == before else 3

    assert in_a_process(check) == 3
