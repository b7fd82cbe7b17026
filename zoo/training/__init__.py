"""Training: a recipe goes in, a run folder comes out.  `train(recipe, run_dir)` is the one entry point.

config.py, duration.py and plan.py import no torch; engine.py imports Composer, which takes seconds, when it is needed.
"""


def train(recipe, run_dir):
    """Train a recipe into a run folder: `zoo.training.run.train`."""
    from zoo.training.run import train as run

    return run(recipe, run_dir)
