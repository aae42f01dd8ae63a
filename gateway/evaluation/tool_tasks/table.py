"""Tasks for a table of products: find rows, then change cells. The state has the rows by id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from gateway.evaluation.questions.problem_stories import GOODS
from gateway.evaluation.tool_tasks.tools import GeneratedTask, Parameter, TaskKind, Tool, ToolError, call, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.evaluation.questions.problem_stories import ProblemRandom
    from gateway.evaluation.tool_tasks.tools import State

_COLUMNS = ("id", "product", "supplier", "price", "stock")
_NUMBERS = ("price", "stock")
_SUPPLIERS = ("Alder", "Birch", "Cedar", "Maple")
_ROWS = 8


def _find(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    column, value = given["column"], given["value"].strip()
    if column not in _COLUMNS:
        raise ToolError(f"there is no column {column!r}; columns: {', '.join(_COLUMNS)}")
    rows = [{"id": name} | row for name, row in state["rows"].items()]
    found = [row for row in rows if str(row[column]).casefold() == value.casefold()]
    if not found:
        raise ToolError(f"no row has the {column} {value!r}")
    return state, "\n".join(orjson.dumps(row).decode() for row in found)


def _set(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    name, column, value = given["id"].strip(), given["column"], given["value"]
    if name not in state["rows"]:
        raise ToolError(f"there is no row with the id {name!r}")
    if column not in _NUMBERS:
        raise ToolError(f"column must be one of {', '.join(_NUMBERS)}")
    row = state["rows"][name] | {column: value}
    return state | {"rows": state["rows"] | {name: row}}, f"{name}: {column} = {value}"


_TOOLS = (
    Tool(
        "find_rows",
        "Return the rows of the product table in which a column has a value.",
        (
            Parameter("column", "string", "One of id, product, supplier, price, stock."),
            Parameter("value", "string", "The value."),
        ),
        _find,
    ),
    Tool(
        "set_cell",
        "Set the price or the stock of a row.",
        (
            Parameter("id", "string", "The id of the row."),
            Parameter("column", "string", "price or stock."),
            Parameter("value", "number", "The new value."),
        ),
        _set,
    ),
)


def _rows(draw: ProblemRandom) -> dict[str, dict[str, Any]]:
    """Return the rows by id: different products, and two of each supplier."""
    suppliers = draw.some(_SUPPLIERS * 2, _ROWS)
    rows = {}
    ids = draw.some(range(1000, 10_000), _ROWS)
    for at, (noun, _, _), supplier in zip(ids, draw.some(GOODS, _ROWS), suppliers, strict=True):
        rows[f"P{at}"] = {
            "product": noun.one,
            "supplier": supplier,
            "price": draw.between(3, 60),
            "stock": draw.between(25, 180),
        }
    return rows


def _task(
    request: str, rows: dict[str, dict[str, Any]], finds: list[tuple[str, str]], cells: list[tuple[str, str, int]]
) -> GeneratedTask:
    """Return a task that finds rows by column and value, and then sets cells: id, column, value."""
    changed = dict(rows)
    for name, column, value in cells:
        changed[name] = changed[name] | {column: value}
    reference = (
        *(call("find_rows", column=column, value=value) for column, value in finds),
        *(call("set_cell", id=name, column=column, value=value) for name, column, value in cells),
    )
    return GeneratedTask(request, {"rows": rows}, {"rows": changed}, reference)


def _sale(draw: ProblemRandom) -> GeneratedTask:
    rows = _rows(draw)
    name, row = draw.pick(list(rows.items()))
    sold = draw.between(3, row["stock"] - 1)
    request = f"{sold} pieces of the product {row['product']} were sold. Lower its stock in the table by {sold}."
    return _task(request, rows, [("product", row["product"])], [(name, "stock", row["stock"] - sold)])


def _transfer(draw: ProblemRandom) -> GeneratedTask:
    rows = _rows(draw)
    (name, row), (name_2, row_2) = draw.some(list(rows.items()), 2)
    moved = draw.between(3, row["stock"] - 1)
    request = (
        f"{moved} pieces were counted as {row['product']} by mistake: they are of the product {row_2['product']}. "
        f"Lower the stock of {row['product']} by {moved} and raise the stock of {row_2['product']} by {moved}."
    )
    cells = [(name, "stock", row["stock"] - moved), (name_2, "stock", row_2["stock"] + moved)]
    return _task(request, rows, [("product", row["product"]), ("product", row_2["product"])], cells)


def _supplier(draw: ProblemRandom) -> GeneratedTask:
    rows = _rows(draw)
    supplier = draw.pick(sorted({row["supplier"] for row in rows.values()}))
    more = draw.between(2, 9)
    request = f"The supplier {supplier} raises each of its prices by {more}. Set the new prices in the table."
    cells = [(name, "price", row["price"] + more) for name, row in rows.items() if row["supplier"] == supplier]
    return _task(request, rows, [("supplier", supplier)], cells)


def _matching(draw: ProblemRandom) -> GeneratedTask | None:
    rows = _rows(draw)
    (name, row), (_, row_2) = draw.some(list(rows.items()), 2)
    more = draw.between(2, 9)
    if row["price"] == row_2["price"] + more:
        return None
    request = f"Set the price of the product {row['product']} to that of the product {row_2['product']} plus {more}."
    finds = [("product", row["product"]), ("product", row_2["product"])]
    return _task(request, rows, finds, [(name, "price", row_2["price"] + more)])


def _outcome(state: State) -> object:
    return {
        name: row | {column: number(column, row[column]) for column in _NUMBERS} for name, row in state["rows"].items()
    }


TABLE = TaskKind(_TOOLS, (_sale, _transfer, _supplier, _matching), _outcome)
