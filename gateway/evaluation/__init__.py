"""Does guidance pay? The paper's experiments for any pair, any questions, and the choice of a route's guidance.

question.py        what is asked, and what is right
setting.py         one point of a grid: who answers, with what help
generations.py     every text an engine wrote, kept: a run goes on where it stopped
staged.py          one question answered in the paper's two stages, by the parts of the gateway's own path
record.py          what a run leaves in its folder
evidence.py        what a folder says of its settings, question by question
target.py          what is wanted of a setting, and what student and teacher mixed at random would do
bounds.py          what may be claimed of many settings at once
recommend.py       the setting that a route should have, or that none pays
policy_file.py     the policy file with it
"""
