"""The Responses API in terms of chat completions. Pure.

request.py      the body of a request, and its chat body
items.py        input items to chat messages
tools.py        tools to chat tools, and names of calls back to tools
output.py       output items and the response object
custom_input.py incremental decoding of a custom tool's input
stored_items.py items of stored responses
events.py       the writer of replies and events
"""
