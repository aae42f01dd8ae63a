"""Guidance: what to ask a teacher (`projection.py`), what of it to keep (`keep.py`: what it skips, `skip.py`, and the
trim, `trim.py`), where it may end early (`ending.py`), whether a student needs it (`probe.py`), and how a student's
words join it (`seam.py`). All of it is pure but the hanging up in `ending.py`: text in, text out.
"""
