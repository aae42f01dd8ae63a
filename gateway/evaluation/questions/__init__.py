"""Data sets of a run, and the exemplars of prompts.

data.py            questions of a named data set, of a file, or generated from a seed
data_lines.py      ... conversion of one line to a question
hub_data.py        ... GSM8K and CSQA from the Hugging Face hub
problems.py        ... word problems from a seed (problem_stories.py, problem_words.py)
exemplars_file.py  exemplars from a file; shipped ones are in shipped/
"""
