"""Guidance text: build the teacher's input, cut its reply, and join the student's text to it.

All modules are pure except for the call in `ending.py`.
"""
