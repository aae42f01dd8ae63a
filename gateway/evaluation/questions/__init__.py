"""Data sets of a run, and the exemplars of prompts.

data.py            questions of a named data set, of a file, or generated from a seed; exemplars (shipped/)
data_lines.py      ... conversion of one line to a question
problem_stories.py ... stories of generated word problems
"""
