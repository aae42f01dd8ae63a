"""The settings of the running process that follow edits of config.yaml.

`settings.py` applies an edit. `engines.py` builds, probes, replaces and closes the engines.
"""
