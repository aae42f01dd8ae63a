"""The callers' keys: those of the policy files, and those that were made while the gateway runs, which are in Redis.

Each process knows them all and asks nobody when a request comes. What changes in Redis it reads twice a second.
"""
