"""How queries, keys and values are made: for each projection its config (`..._config.py`, no torch) and its module.

The methods that a module has are written down in blocks/interface.py (`Projection`).
"""
