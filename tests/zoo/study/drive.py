"""A `zoo study run` whose runs are made by rule, as a process that a test can kill.

python drive.py STUDY BATCH_S [ADDRESS]     with the address of a Ray cluster: on that
"""

import json
import sys
from pathlib import Path

from tests.zoo.study.conftest import runner_of
from zoo.errors import ZooError
from zoo.study.findings import findings

if __name__ == "__main__":
    runner = runner_of(Path(sys.argv[1]), batch_s=float(sys.argv[2]), say=lambda text: print(text, flush=True))
    try:
        if sys.argv[3:]:
            from zoo.study.ray_slots import RaySlots

            runner.slots = RaySlots(None, sys.argv[3])
        runner.run()
    except ZooError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(findings(runner)["results"], sort_keys=True))
