"""Which keys a query sees: for each pattern its config (`..._config.py`, no torch) and the class that runs."""
