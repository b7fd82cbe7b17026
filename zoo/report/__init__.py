"""Architectures side by side: `zoo compare` as a table, a page and JSON; attention maps for `zoo show --pattern`.

columns.py, facts.py, reach.py, notes.py, rows.py, text.py and page.py import no torch; curves.py imports matplotlib;
maps.py and measure.py import torch.
"""
