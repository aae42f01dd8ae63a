"""Prices of imported models: those of the file, list prices of LiteLLM's table, or a line to fill in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.pricing import litellm_table, without_trailing_zeros

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from gateway.migration.builder import DataBuilder
    from gateway.migration.context import ImportContext
    from gateway.migration.source import SourceField, SourceKeys
    from gateway.pricing import Price

_NAMES = {
    "input_cost_per_token": "input_per_1m",
    "output_cost_per_token": "output_per_1m",
    "cache_read_input_token_cost": "cached_input_per_1m",
    "cache_creation_input_token_cost": "cache_write_per_1m",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h_per_1m",
}
_REQUIRED = ("input_cost_per_token", "output_cost_per_token")
_PER_1M = 1_000_000


def add_price(
    model: DataBuilder, entry: SourceField, params: SourceKeys, info: SourceKeys, context: ImportContext
) -> None:
    """Add a price to a model, unless the list price of its name is known.

    Args:
        model: model of config.yaml without a price.
        entry: its entry in model_list, for notices.
        params: litellm_params of the entry; prices are taken.
        info: model_info of the entry; prices and base_model are taken.
        context: receives the notices.
    """
    base_field = context.first(info.take("base_model"), params.take("base_model"))
    base_model = context.text(base_field)
    fields = {name: context.first(params.take(name), info.take(name)) for name in _NAMES}
    if any(fields[name] is not None for name in _REQUIRED):
        _add_written(model, entry, fields, context)
        if base_field is not None:
            context.notice(base_field, "not imported: the entry has a price of its own")
        return
    for field in filter(None, fields.values()):
        context.notice(field, "not imported: needs input_cost_per_token and output_cost_per_token too")
    if base_model is not None and (price := litellm_table(base_model)) is not None:
        model.put("price", value=_listed(price), comment=f"list price of {base_model}")
        return
    if base_field is not None:
        context.notice(base_field, "not imported: LiteLLM's table has no price of it")
    if litellm_table(str(model.data.get("model"))) is None:
        for name in _REQUIRED:
            model.put_unknown("price", _NAMES[name], placeholder=0)
        _fill_in(model, context)
        context.notice(entry, f"no price is known: fill in the price of {model.data['name']} in config.yaml")


def _add_written(
    model: DataBuilder, entry: SourceField, fields: Mapping[str, SourceField | None], context: ImportContext
) -> None:
    numbers = {name: context.number(fields[name]) for name in _REQUIRED}
    if all(number == 0 for number in numbers.values()):
        model.put("price", "free", value=True, field=fields[_REQUIRED[0]])
        return
    for name, field in fields.items():
        if (number := context.number(field)) is not None:
            model.put("price", _NAMES[name], value=without_trailing_zeros(number * _PER_1M), field=field)
        elif name in _REQUIRED:
            model.put_unknown("price", _NAMES[name], placeholder=0)
            _fill_in(model, context)
            context.notice(entry, f"no {name}: fill in price.{_NAMES[name]} in config.yaml")


def _fill_in(model: DataBuilder, context: ImportContext) -> None:
    model.comments["price",] = "fill in: USD per 1M tokens, or {free: true}"
    if (missing := f"price of {model.data['name']}") not in context.missing:
        context.missing.append(missing)


def _listed(price: Price) -> dict[str, Decimal]:
    """Return a list price as in config.yaml, without the values that are defaults."""
    values = {"input_per_1m": price.input_usd, "output_per_1m": price.output_usd}
    if price.cached_input_usd != price.input_usd:
        values["cached_input_per_1m"] = price.cached_input_usd
    if price.cache_write_usd != price.input_usd:
        values["cache_write_per_1m"] = price.cache_write_usd
    if price.cache_write_1h_usd != price.cache_write_usd:
        values["cache_write_1h_per_1m"] = price.cache_write_1h_usd
    return {name: without_trailing_zeros(usd * _PER_1M) for name, usd in values.items()}
