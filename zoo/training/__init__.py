"""Training: a recipe goes in, a run folder comes out. `zoo.training.run.train` is the one entry point.

config.py and duration.py import no torch; everything else may import Composer, which takes seconds.
"""
