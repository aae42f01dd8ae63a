"""Wire types of the public APIs (OpenAI's and Anthropic's), and the capabilities of each kind of engine.

Requests are decoded once (`body.py`). Fields that the gateway reads are checked and typed. The body is kept as it was
sent, so that unknown parameters reach the student unchanged. OpenAI's names (`prompt_tokens`, ...) are used in this
package only; other packages use `input_tokens` and `output_tokens`.
"""
