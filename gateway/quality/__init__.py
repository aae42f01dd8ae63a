"""Measure the quality of guided answers, switch guidance off where it does not help, and collect sample requests."""
