"""Capacity planning: GPUs, cost and waiting times of a load, computed from measured engines. Pure arithmetic.

    curve     measurements of one engine, read from a file or computed from the timings of its streams
    replica   one replica under a load: a batched server, by queueing theory, and the time to the first token
    plan      the replicas that a load needs, and teacher and student compared with the teacher alone: GPUs, waits, cost

No request uses this package. docs/design/planning.md has the formulas and their validation.
"""
