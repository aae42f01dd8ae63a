"""Search for the exemplars of a route's teacher, by experiments.

exemplars.py       selection of questions as exemplars of primed guidance, styles of their answers, and the file
search.py          successive halving of sets of exemplars, within a budget of calls
finding.py         a whole search with its check; each set is measured as a staged run
"""
