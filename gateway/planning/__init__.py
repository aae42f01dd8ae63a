"""Capacity planning: GPUs and cost of a load, computed from measured engines. Pure arithmetic.

    curve     measurements of one engine, read from a file or computed from the timings of its streams
    replica   capacity of one replica, a batched server
    plan      the replicas that a load needs, and teacher and student compared with the teacher alone: GPUs and cost

No request uses this package. docs/design/planning.md has the formulas.
"""
