"""Measured guidance times: the basis of `deadline: auto` and of the warning about often late guidance."""
