"""What a run says, as Markdown, HTML and JSON.

comparison.py      settings held against each other
frontier.py        which settings no other beats
times.py           how long each keeps an engine
report.py          what a report says, as data; plain_report.py is that as JSON
published.py       the paper's figures; beside.py puts them beside those measured
tables.py          its tables; excerpts.py short pieces of answers; labels.py and wording.py what things are called
figures.py         its figures (figure_parts.py, drawing.py, placing_labels.py)
rendering.py       all of it, by templates/
"""
