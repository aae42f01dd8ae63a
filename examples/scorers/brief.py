"""A custom scorer: an answer is correct if it states the expected text in few words.

    cd examples/scorers && gkt-gateway eval run my-run --data questions.jsonl --scorer brief:brief

It gets the answer and the question, never the prompt. See docs/evaluation.md#scorers.
"""

from gateway.evaluation.record import Question, ScoredAnswer

MOST_WORDS = 60


def brief(answer: str, question: Question) -> ScoredAnswer:
    """Return 1 for the expected text in an answer of at most MOST_WORDS words, 0.5 in a longer one, 0 without it."""
    if question.answer.casefold() not in answer.casefold():
        return ScoredAnswer(0.0)
    words = len(answer.split())
    return ScoredAnswer(1.0 if words <= MOST_WORDS else 0.5, f"{words} words")
