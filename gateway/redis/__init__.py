"""Redis connections, scripts and the names of keys.

`client.py` has the connections of a process and the circuit breakers. `servers.py` selects the kind of deployment that
`redis.url` names: `single.py`, `sentinel.py` or `cluster.py`. `connection.py` has connections with timeouts. For a
cluster, `cluster_client.py` routes commands by the `slots.py` of their keys, whose nodes `topology.py` knows.
`script.py` runs scripts, `background.py` repeats calls until they succeed, and `keys.py` names all keys.
"""
