"""OpenAI's API: the requests of callers and the replies that they get.

Requests are decoded once (`body.py`). Fields that the gateway reads are checked and typed. The body is kept as it was
sent, so that unknown parameters reach the student unchanged. OpenAI's names (`prompt_tokens`, ...) are used in this
package only; other packages use `input_tokens` and `output_tokens`.
"""
