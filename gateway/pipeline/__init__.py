"""The path of one request, from validated input to its receipt. Start reading at `completion.py`."""
