"""Studies: several architectures, seeds and settings trained, compared with intervals, and reported.

config.py reads the study file, expand.py and matching.py make its runs, runner.py trains them (slots.py, ray_slots.py:
where), results.py reads what they left, statistics.py, findings.py, equality.py and verdicts.py conclude, report.py,
tables.py, plots.py and page.py show it.
config.py, expand.py, estimate.py, state.py, commands.py and runner.py import no torch.
"""
