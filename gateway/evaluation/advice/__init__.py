"""What a run's records advise: a setting for a route, and how long its guidance should be.

evidence.py        what a folder says of its settings, question by question
target.py          what is wanted of a setting, and what student and teacher mixed at random would do
bounds.py          what may be claimed of many settings at once
recommend.py       the setting that a route should have, or that none pays
policy_file.py     the policy file with it
policy_files.py    ... and the files that it needs beside it
auto.py            what a chosen length would have given
fit.py             learns how long guidance should be
"""
