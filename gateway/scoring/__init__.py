"""Extraction of an answer's result (number, choice or text) and the agreement of two answers. Pure functions.

The evaluation and the quality sampler share these rules. docs/design/scoring.md compares them with labels set by
hand. Answers are untrusted input, so each rule takes time linear in the length of the text.
"""
