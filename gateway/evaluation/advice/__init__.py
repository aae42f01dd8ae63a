"""Advice from a run's records: a setting for a route.

evidence.py        the settings of a folder, question by question
repricing.py       costs at other prices, with assumed or measured reads of the prompt cache
target.py          the target of a recommendation, the comparison with a random mixture of student and teacher, and
                   simultaneous claims about many settings
recommend.py       the recommended setting of a route, or that no setting pays
price_sheets.py    the results of a run at the list prices of other models
sample_size.py     the questions that a target needs
explanation.py     a recommendation in sentences
policy_file.py     the policy file of a recommendation, and the files that it needs
"""
