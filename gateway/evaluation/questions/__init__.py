"""Data sets of a run, and the exemplars of prompts.

data.py       questions of a shipped data set or of a file; exemplars
data_lines.py ... conversion of one line to a question
shipped/      200 questions each of GSM8K and CommonsenseQA, with their licenses; exemplars
"""
