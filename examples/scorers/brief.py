"""A scorer of your own: an answer is right where it says what it should in few words.

    cd examples/scorers && gkt-gateway eval run my-run --data questions.jsonl --scorer brief:brief

It gets the answer and the question, never the prompt. See docs/evaluation.md#scorers.
"""

from gateway.evaluation.question import Question
from gateway.evaluation.record import ScoredAnswer

MOST_WORDS = 60


def brief(answer: str, question: Question) -> ScoredAnswer:
    """1 where what is right stands in at most MOST_WORDS words, a half where in more, 0 where it is missing."""
    if question.answer.casefold() not in answer.casefold():
        return ScoredAnswer(0.0)
    words = len(answer.split())
    return ScoredAnswer(1.0 if words <= MOST_WORDS else 0.5, f"{words} words")
