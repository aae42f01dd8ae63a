"""Measure the quality of guided answers on a sample, against answers of the teacher and of the student alone."""
