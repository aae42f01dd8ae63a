"""Search for the exemplars of a route's teacher, by experiments.

exemplars.py       selection of questions as exemplars of primed guidance, and styles of their answers
search.py          successive halving of sets of exemplars, within a budget of calls
trials.py          ... each measured as a staged run
finding.py         a whole search with its check
exemplars_yaml.py  ... and its file
"""
