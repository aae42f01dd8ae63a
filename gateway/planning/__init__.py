"""Capacity planning: GPUs, cost and waiting times of a load, computed from measured engines. Pure arithmetic.

    curve     measurements of one engine, read from a file
    rounds    the time to the first token: the engine's rounds of prefill and decoding
    replica   one replica under a load: a batched server, by queueing theory
    fleet     the number of replicas that a load needs
    plan      teacher and student compared with the teacher alone: GPUs, waits, cost
    paper     the paper's times, compared with perfect and with no scaling of batches
    measured  conversion of an engine's stream timings to a curve

No request uses this package. docs/design/planning.md has the formulas and their validation.
"""
