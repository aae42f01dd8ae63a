"""Measured guidance times: what `deadline: auto` follows, and the warning about routes whose guidance is often late."""
