"""The process that measures a speed for a study: `zoo bench ...`, which ends with the study, however that ends.

    python -m zoo.cli.bench_of_study bench train RECIPE ...

A measurement that outlives a study that was killed would run beside those of the next one, and make them slower.
"""

import sys

from zoo.study.child import ends_with_study
from zoo.study.preload import STOPPED

if __name__ == "__main__":
    if not ends_with_study():
        sys.exit(STOPPED)
    from zoo.cli.main import main

    main()
