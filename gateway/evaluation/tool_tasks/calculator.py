"""Tasks for a calculator with named results. The state has the stored results."""

from __future__ import annotations

import ast
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from gateway.evaluation.questions.problem_stories import GOODS, JOBS, PEOPLE
from gateway.evaluation.tool_tasks.tools import GeneratedTask, Parameter, TaskKind, Tool, ToolError, call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.evaluation.questions.problem_stories import ProblemRandom
    from gateway.evaluation.tool_tasks.tools import State

MAX_EXPRESSION_CHARS = 200
_DECIMALS = 6
# Larger numbers are errors of the model, and their arithmetic could take long.
_MAX_BITS = 200


def evaluate(expression: str) -> int | float:
    """Return the value of an expression of numbers, + - * / and parentheses. Raises ToolError."""
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ToolError(f"the expression has more than {MAX_EXPRESSION_CHARS} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        value = _value(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ToolError("the expression is not valid: use numbers, + - * / and parentheses") from error
    except ZeroDivisionError as error:
        raise ToolError("division by zero") from error
    return int(value) if value.denominator == 1 else round(float(value), _DECIMALS)


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            # The shortest decimal that rounds to the float is the number as written.
            found = Fraction(str(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            found = -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            found = _value(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            found = _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            found = _value(left) - _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            found = _value(left) * _value(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            found = _value(left) / _value(right)
        case _:
            raise ToolError("the expression may have only numbers, + - * / and parentheses")
    if max(found.numerator.bit_length(), found.denominator.bit_length()) > _MAX_BITS:
        raise ToolError("the result is too large")
    return found


def _calculate(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    return state, str(evaluate(given["expression"]))


def _store(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    name, value = given["name"].strip(), given["value"]
    return state | {"stored": state["stored"] | {name: value}}, f"Stored {name} = {value}."


_TOOLS = (
    Tool(
        "calculate",
        "Calculate an expression.",
        (Parameter("expression", "string", "Numbers, + - * / and parentheses."),),
        _calculate,
    ),
    Tool(
        "store",
        "Store a number under a name.",
        (Parameter("name", "string", "The name."), Parameter("value", "number", "The number.")),
        _store,
    ),
)


def _task(request: str, *results: tuple[str, str, int]) -> GeneratedTask:
    """Return a task that stores each result: its name, an expression, and its value."""
    reference = tuple(
        one
        for name, expression, value in results
        for one in (call("calculate", expression=expression), call("store", name=name, value=value))
    )
    expected = {"stored": {name: value for name, _, value in results}}
    return GeneratedTask(request, {"stored": {}}, expected, reference)


def _purchase(draw: ProblemRandom) -> GeneratedTask:
    (first, low, high), (second, low_2, high_2) = draw.some(GOODS, 2)
    count, count_2 = draw.between(12, 60), draw.between(12, 60)
    price, price_2 = draw.between(low, high), draw.between(low_2, high_2)
    total = count * price + count_2 * price_2
    request = (
        f"{draw.pick(PEOPLE)} orders {first.count(count)} for {price} dollars each and {second.count(count_2)} for "
        f"{price_2} dollars each. Store the total price in dollars under the name total."
    )
    return _task(request, ("total", f"{count} * {price} + {count_2} * {price_2}", total))


def _delivery(draw: ProblemRandom) -> GeneratedTask:
    noun = draw.pick(GOODS)[0]
    boxes, each, crates, held = (draw.between(6, 30) for _ in range(4))
    arrived = boxes * each + crates * held
    sold = draw.between(30, arrived - 1)
    request = (
        f"{boxes} boxes with {noun.count(each)} each and {crates} crates with {noun.count(held)} each arrive at a "
        f"shop. {sold} of these {noun.many} are sold. Store how many arrived under the name arrived, and how many are "
        "left under the name left."
    )
    return _task(
        request,
        ("arrived", f"{boxes} * {each} + {crates} * {held}", arrived),
        ("left", f"{arrived} - {sold}", arrived - sold),
    )


def _wages(draw: ProblemRandom) -> GeneratedTask:
    hours, rate, weeks, rent = draw.between(11, 39), draw.between(12, 35), draw.between(6, 26), draw.between(21, 95)
    earned, spent = hours * rate * weeks, rent * weeks
    request = (
        f"{draw.pick(PEOPLE)} works {hours} hours a week {draw.pick(JOBS)} for {rate} dollars an hour, and spends "
        f"{rent} dollars a week. After {weeks} weeks: store the dollars earned under the name earned, and the dollars "
        "left after spending under the name saved."
    )
    return _task(
        request,
        ("earned", f"{hours} * {rate} * {weeks}", earned),
        ("saved", f"{earned} - {rent} * {weeks}", earned - spent),
    )


def _average(draw: ProblemRandom) -> GeneratedTask | None:
    counts = [draw.between(110, 990) for _ in range(4)]
    if sum(counts) % 4:
        return None
    noun = draw.pick(GOODS)[0]
    listed = ", ".join(map(str, counts[:-1])) + f" and {counts[-1]}"
    request = (
        f"A shop sold {listed} {noun.many} in four months. Store the sum under the name sum, and the average of a "
        "month under the name average."
    )
    added = " + ".join(map(str, counts))
    return _task(request, ("sum", added, sum(counts)), ("average", f"{sum(counts)} / 4", sum(counts) // 4))


CALCULATOR = TaskKind(_TOOLS, (_purchase, _delivery, _wages, _average), lambda state: state["stored"])
