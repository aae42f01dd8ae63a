"""Guidance: what to ask a teacher (`projection.py`), what of it to keep (`trim.py`), how a student's words join it
(`seam.py`). All of it is pure: text in, text out.
"""
