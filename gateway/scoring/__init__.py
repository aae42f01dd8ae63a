"""What an answer comes to, read out of its text alone: a number, a choice, a text. And how far two answers agree. Pure.

One set of rules, for the evaluation and for the quality guard: docs/evaluation/scoring.md says how they were held
against answers read by hand. Answers are what callers have models write: each rule takes time in proportion to a text.
"""
