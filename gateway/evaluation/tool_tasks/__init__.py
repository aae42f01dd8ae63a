"""Multi-step tasks with tools that run in memory: their generators, the conversation with an engine, and the run.

tools.py           tools, calls and errors
calculator.py      the four kinds: tools over a JSON state, and generators of tasks; calculations
table.py           changes of a table
schedule.py        changes of a calendar
sandbox.py         changes of files
tasks.py           the task set from a seed
conversation.py    one task with one engine
plans.py           the student with plans of the teacher
switching.py       turns of the teacher or the student, as a gateway chooses them
run.py             all tasks with the teacher and the student, stored in a run's folder
summary.py         totals by setting, and differences
"""
