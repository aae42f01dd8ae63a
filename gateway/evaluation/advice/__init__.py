"""Advice from a run's records: a setting for a route, and the length of its guidance.

evidence.py        the settings of a folder, question by question
target.py          the target of a recommendation, the comparison with a random mixture of student and teacher, and
                   simultaneous claims about many settings
recommend.py       the recommended setting of a route, or that no setting pays
policy_file.py     the policy file of a recommendation, and the files that it needs
fit.py             the results of guidance lengths, and fitting of a length model
"""
