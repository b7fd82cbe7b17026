"""Attention over one interval of keys a query: the Triton kernels behind full, window and compression attention."""
