"""Report of a run as Markdown, SVG and JSON.

comparison.py      comparison of settings: paired, and by accuracy against cost
report.py          contents of a report as data, with the engine time of each setting
published.py       the paper's figures, and their comparison with measured ones
tables.py          tables, and the questions on which settings differ; wording.py labels and number formats
figures.py         figures; drawing.py their style and parts
rendering.py       the files; markdown.py the page
"""
