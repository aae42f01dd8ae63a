"""Report of a run as Markdown, HTML and JSON.

comparison.py      paired comparison of settings
frontier.py        settings that no other beats
times.py           engine time of each setting
report.py          contents of a report as data; plain_report.py converts them to JSON
published.py       the paper's figures; beside.py compares them with measured ones
tables.py          tables; excerpts.py ends of answers; labels.py and wording.py labels and number formats
figures.py         figures (figure_parts.py, drawing.py, placing_labels.py)
rendering.py       the files, from templates/
"""
