"""Benchmarks against peers on equal work: the same arrays, initial weights, cohorts and order of batches for everybody.

`workloads` says what is computed, `contestants/` holds one script for each competitor, `measure` runs them in fresh
processes, and `table` writes what came out. ``sumfold bench`` is the face of it.
"""
