"""Benchmarks: what a user can run to see speed and memory on a machine."""
