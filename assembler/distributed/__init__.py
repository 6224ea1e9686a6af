"""Ranks: the processes that share one model, started or joined, kept in step, and ended together.

Rank 0 drives: it schedules, samples and talks to the user. The other ranks receive the inputs of
each step and run their share of the model. This package knows processes and process groups, and
neither models nor engines.
"""
