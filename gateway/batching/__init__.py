"""Batches of teacher calls over the whole fleet: tickets and permits.

Redis coordinates the processes and carries no prompt. A request that needs the teacher enqueues a ticket. Any process
with an update runs one script, which opens batches and grants permits for all processes. Each process then sends its
own calls at once, and the teacher batches them continuously. Identical requests share one call, and greedy guidance is
cached for later requests.

`window.py` decides when a batch opens. `scheduler.py` has the queue with fair shares, permits and shared calls, and
`scheduler.lua` implements the same rules in Redis. `teacher_queue.py` exchanges updates for decisions, `batcher.py`
holds the queues of all teachers, and `single_flight.py` shares one call among identical requests.
"""
