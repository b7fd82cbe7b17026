"""Models of other libraries: a transformers folder becomes a run, a run becomes one, and layers are exchanged."""
