"""Does guidance pay? The paper's experiments for any pair, any questions, and the choice of a route's guidance.

questions/         where questions come from, and the examples shown before them
question.py        what is asked, and what is right
scoring.py         how an answer is held against what is right, by name
  judging.py       ... a model asked; what an answer comes to is read in gateway/scoring/
judges.py          a judge that is a model
setting.py         one point of a grid: who answers, with what help
auto_length.py     ... and the rule by which the length of it is chosen for each question
grid.py            what is varied, and the settings that come of it
run_library.py     the projections that it may name: those of policies

pair.py            the engines: small ones of this machine, or those of a config.yaml
generations.py     every text an engine wrote, kept: a run goes on where it stopped
staged.py          one question answered in the paper's two stages, by the parts of the gateway's own path
folder.py          a run's folder: what may share it, and one process at a time
run.py             a run in two stages; patience.py takes the engines' failures, example.py makes a line of an answer
live.py            a run through a whole gateway; caller.py hears its answers, elsewhere.py is about one that runs

record.py          what a run leaves in its folder
run_records.py     reads it
summary.py         a run's examples added up by setting
statistics.py      intervals and paired tests
reporting/         tables and figures of a run
edited.py          files of a setting that say something else than a run has shown
advice/            the setting that a route should have, or that none pays; how long guidance should be
priming/           the exemplars that a route's teacher should be shown
"""
