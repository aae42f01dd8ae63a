"""Evaluation: the paper's experiments for any pair and data set, and advice on a route's guidance.

questions/         data sets, and the exemplars of prompts
scoring.py         scorers by name: the comparison of an answer with the correct one
                   ... or by a model; gateway/scoring/ extracts the result of an answer
setting.py         a grid of varied parameters, and each of its points: which models answer, and with which guidance

pair.py            the engines: small local ones, or two models of a config.yaml, and a judge; retries of calls
generations.py     storage of every generated text, for resuming a run
staged.py          one question in the paper's two stages, by the components of the gateway's request path
folder.py          a run's folder: consistency checks and a process lock
run.py             a run in two stages, and the records of answers
live.py            a run through a running gateway, with its client

record.py          questions, the records in a run's folder, and their reader
summary.py         totals of a run's examples by setting
statistics.py      intervals and paired tests
reporting/         tables and figures of a run
advice/            recommendation of a setting for a route
"""
