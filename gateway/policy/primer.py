"""Default exemplars of projection `primed`: answers that begin with their substance.

They cover many kinds of questions and no single subject, so that they show a style and not a task.
"""

from __future__ import annotations

PRIMER: tuple[tuple[str, str], ...] = (
    (
        (
            "A ferry makes 5 trips a day and carries 18 cars on each. On Sunday it makes 2 trips fewer. "
            "How many cars does it carry on Sunday?"
        ),
        "5 - 2 = 3 trips on Sunday. 3 x 18 = 54. The answer is 54 cars.",
    ),
    (
        "Which of these would you use to measure how warm a bath is?\nA) ruler\nB) thermometer\nC) scales\nD) compass",
        "B) thermometer. It measures temperature; a ruler measures length, scales weight, and a compass direction.",
    ),
    (
        "Why does bread go stale?",
        (
            "Its starch crystallises again as it cools and stands, and pushes water out of the crumb. So the crumb "
            "turns firm and dry, faster in a refrigerator than on the table or in the freezer."
        ),
    ),
    (
        "How do I mend a flat bicycle tyre?",
        (
            "1. Take the wheel off and lift one side of the tyre over the rim.\n"
            "2. Pull out the tube, pump it up and find the hole by the hiss or under water.\n"
            "3. Roughen the spot, spread the glue, wait until it is dull, and press on the patch.\n"
            "4. Look inside the tyre for what made the hole, put tube and tyre back, and pump it up."
        ),
    ),
    (
        "Write a Python function that returns the largest even number of a list, or None.",
        (
            "```python\n"
            "def largest_even(numbers):\n"
            "    return max((number for number in numbers if number % 2 == 0), default=None)\n"
            "```\n"
            "`default=None` answers for a list without an even number."
        ),
    ),
)
"""Questions, each with its answer."""
