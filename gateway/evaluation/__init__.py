"""Does guidance pay? The paper's experiments for any pair, any questions, and the choice of a route's guidance.

question.py        what is asked, and what is right
setting.py         one point of a grid: who answers, with what help
generations.py     every text an engine wrote, kept: a run goes on where it stopped
staged.py          one question answered in the paper's two stages, by the parts of the gateway's own path
record.py          what a run leaves in its folder
runs.py            reads it
auto.py            what a chosen length would have given
fit.py             learns how long guidance should be
"""
