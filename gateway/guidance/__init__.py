"""Guidance text: build the teacher's input, cut its reply, and join the student's text to it.

The modules, all pure except for the call in `ending.py`:

- `projection.py`: the teacher's input, and the position of the guidance in the student's input.
- `keep.py`: the kept part of a teacher's text, by the skip rules (`skip.py`) and the trim (`trim.py`).
- `ending.py`: the end of guidance at a sentence or step before its length is used up.
- `probe.py`: the student's confidence in its first token.
- `seam.py`: the join of the guidance and the student's text.
"""
