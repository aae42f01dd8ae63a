"""The exemplars that a route's teacher should be shown: found by trying.

exemplars.py       which questions become exemplars of primed guidance, and in which styles
search.py          a race of sets of them, within a budget of calls
trials.py          ... each measured as a staged run
finding.py         all of a search, with its check
exemplars_yaml.py  ... and the file it leaves
"""
