"""RE2 patterns of English boilerplate at the beginning of an answer.

Each pattern matches from the beginning of a sentence. No pattern matches a sentence that may contain a part of the
answer: most patterns exclude digits.
"""

from __future__ import annotations

# The typographic apostrophe, written below as a backtick.
_APOSTROPHE = "\u2019"
_YES = r"(?:certainly|sure(?: thing)?|of course|absolutely|definitely|gladly|great|okay|ok|all ?right)"
_YES_FIRST = rf"(?:{_YES}[,:!] )?"
_TO_SENTENCE_END = r"\b[^.:!?\n0-9]*"
_WILL = r"(?:[`']ll| will| need to| can| should| must| have to)?"
_BREAK = rf"break{_TO_SENTENCE_END}\b(?:down|steps?|problem|question|information|given)"
_ENGLISH = (
    # "Certainly!", "Great question!"
    rf"{_YES}[!.]",
    r"(?:(?:that[`']s|what) )?(?:an? )?(?:great|good|excellent|interesting) question[!.]",
    # "I'd be happy to explain:", "Sure, I can help you with that!"
    rf"{_YES_FIRST}(?:I[`']d|I would) be (?:happy|glad|delighted) to{_TO_SENTENCE_END}[.:!]",
    rf"{_YES_FIRST}(?:I can|I[`']ll|I will|let me) (?:help|assist|explain|walk|guide|show){_TO_SENTENCE_END}[.:!]",
    # "Sure, here's a step-by-step solution:"
    rf"{_YES_FIRST}here(?:[`']s| is| are){_TO_SENTENCE_END}:",
    # "Let's break this down step by step.", "Let us solve the problem:"
    rf"{_YES_FIRST}let(?:[`']s| us| me) (?:first )?{_BREAK}[.:!]",
    (
        rf"{_YES_FIRST}let(?:[`']s| us| me) (?:first )?(?:solve|work|go|start|begin|think|look|take|tackle|figure|"
        rf"analy[sz]e|calculate|find|determine|consider){_TO_SENTENCE_END}[.:!]"
    ),
    # "To determine how many rolls he sells, we need to follow these steps:"
    (
        rf"{_YES_FIRST}(?:in order )?to (?:determine|find|calculate|compute|solve|answer|figure|work|understand)\b"
        rf"[^!?\n]*?,? (?:we|you|I|let[`']s|let us){_WILL} (?:first )?"
        rf"(?:{_BREAK}|(?:follow|go through|work through|look at|consider|think){_TO_SENTENCE_END})[.:]"
    ),
    # "**Answer:**", "Step-by-step solution:"
    r"(?:#+ |\*\*)?(?:the )?(?:step[- ]by[- ]step )?(?:answer|solution|explanation)(?: is)?:(?:\*\*)?",
)

ENGLISH: tuple[str, ...] = tuple(f"(?i){one.replace('`', _APOSTROPHE)}" for one in _ENGLISH)
"""The built-in list, named `english` in policies."""
