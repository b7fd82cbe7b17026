"""Studies: several architectures, seeds and settings trained, compared with intervals, and reported.

config.py reads the study file, expand.py makes its runs, runner.py trains them (slots.py, ray_slots.py: where),
results.py and statistics.py say what was found, report.py, plots.py and page.py show it.
config.py, expand.py, estimate.py, state.py, commands.py and runner.py import no torch.
"""
