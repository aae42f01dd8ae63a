"""Does guidance pay? The paper's experiments for any pair, any questions, and the choice of a route's guidance.

question.py        what is asked, and what is right
data.py            the questions of a run: by name, from a file, made from a seed
  data_lines.py    ... one line of a file as a question
  hub_data.py      ... GSM8K and CSQA from the hub
  problems.py      ... word problems from a seed (problem_stories.py, problem_words.py)
  exemplars_file.py  questions answered beforehand; our own lie in shipped/
scoring.py         how an answer is held against what is right, by name
  judging.py       ... a model asked; what an answer comes to is read in gateway/scoring/
setting.py         one point of a grid: who answers, with what help
generations.py     every text an engine wrote, kept: a run goes on where it stopped
staged.py          one question answered in the paper's two stages, by the parts of the gateway's own path
record.py          what a run leaves in its folder
run_records.py     reads it
auto.py            what a chosen length would have given
fit.py             learns how long guidance should be

grid.py            what is varied, and the settings that come of it
run_library.py     the projections that it may name: those of policies
folder.py          a run's folder: what may share it, and one process at a time
pair.py            the engines: small ones of this machine, or those of a config.yaml
run.py             a run in two stages; patience.py takes the engines' failures, example.py makes a line of an answer
live.py            a run through a whole gateway; caller.py hears its answers, elsewhere.py is about one that runs
judges.py          a judge that is a model
evidence.py        what a folder says of its settings, question by question
target.py          what is wanted of a setting, and what student and teacher mixed at random would do
bounds.py          what may be claimed of many settings at once
recommend.py       the setting that a route should have, or that none pays
policy_file.py     the policy file with it
policy_files.py    ... and the files that it needs beside it

statistics.py      intervals and paired tests
summary.py         a run's examples added up by setting; comparison.py holds settings against each other
frontier.py        which settings no other beats; times.py how long each keeps an engine
published.py       the paper's figures; beside.py puts them beside those measured
report.py          what a report says, as data; plain_report.py is that as JSON
  tables.py        ... its tables; excerpts.py short pieces of answers; labels.py and wording.py what things are called
  figures.py       ... its figures (figure_parts.py, drawing.py, placing_labels.py)
  rendering.py     ... all of it as Markdown and HTML, by templates/

exemplars.py       which questions become exemplars of primed guidance, and in which styles
exemplar_search.py a race of sets of them, within a budget of calls
exemplar_trials.py ... each measured as a staged run
exemplar_finding.py  all of a search, with its check
exemplar_yaml.py   ... and the file it leaves
"""
