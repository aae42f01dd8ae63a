"""The clients of hostile.py. The flood and the measured victim each run in their own process."""
