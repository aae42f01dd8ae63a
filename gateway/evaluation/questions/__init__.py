"""The questions of a run, and the examples shown before them.

data.py            questions by name, from a file, or made from a seed
data_lines.py      ... one line of a file as a question
hub_data.py        ... GSM8K and CSQA from the hub
problems.py        ... word problems from a seed (problem_stories.py, problem_words.py)
exemplars_file.py  questions answered beforehand; our own lie in shipped/
"""
