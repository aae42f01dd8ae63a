"""How many GPUs a load needs, what it costs and how long callers wait, from measured engines. Pure arithmetic.

    curve     what was measured of one engine: a file
    replica   one replica under a load: a batched server, by queueing theory
    fleet     how many replicas a load needs
    plan      teacher and student against the teacher alone: GPUs, waits, money
    paper     the paper's times, between no and perfect scaling of batches
    measured  from what a running engine's streams told to a curve

Nothing of it is on the path of a request. docs/planning.md has the formulas and what was checked against what.
"""
