"""Evaluation: the paper's experiments for any pair and data set, and advice on a route's guidance.

questions/         data sets, and the exemplars of prompts
question.py        a question with its correct answer
scoring.py         scorers by name: the comparison of an answer with the correct one
  judging.py       ... by a model; gateway/scoring/ extracts the result of an answer
judges.py          a judge that is a configured model
setting.py         one point of a grid: which models answer, and with which guidance
auto_length.py     ... and the rule that chooses the guidance length for each question
grid.py            the varied parameters and the settings that result
run_library.py     the projections that a run may name: those of policies

pair.py            the engines: small local ones, or two models of a config.yaml
generations.py     storage of every generated text, for resuming a run
staged.py          one question in the paper's two stages, by the components of the gateway's request path
folder.py          a run's folder: consistency checks and a process lock
run.py             a run in two stages; patience.py retries engine calls, example.py makes a record of an answer
live.py            a run through a whole gateway; caller.py is its client, elsewhere.py describes remote routes

record.py          the records in a run's folder
run_records.py     their reader
summary.py         totals of a run's examples by setting
statistics.py      intervals and paired tests
reporting/         tables and figures of a run
edited.py          detection of files that changed since a run
advice/            recommendation of a setting for a route, and of the guidance length
priming/           search for the exemplars of a route's teacher
"""
