"""Batches of guidance over the whole fleet: tickets and permits.

Redis coordinates; it carries no prompt. A request that needs the teacher leaves a ticket; one script, run by whoever
has news, decides for all processes whether a batch opens and grants permits; each owner then fires its own calls at
once, and the teacher's continuous batching does the rest. Identical requests share one call, and greedy guidance is
kept for later ones.

`window.py` is the rule by which a batch opens, `board.py` the queue with its fair shares, permits and flights,
`board.lua` the same in Redis, `batcher.py` what a request awaits, `flights.py` how requests share a call.
"""
