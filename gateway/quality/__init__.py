"""Measure the quality of guided answers against the teacher's and the student's alone, and switch guidance off."""
