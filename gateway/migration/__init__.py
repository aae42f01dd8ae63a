"""Convert configurations of other gateways: `gkt-gateway import`.

`source.py` reads a LiteLLM proxy configuration with its lines. `litellm.py` calls the converters:
`litellm_settings.py` (sections), `litellm_models.py` with `litellm_prices.py` (model_list) and `litellm_routes.py`
(aliases, fallbacks and routes). `litellm_advice.py` has the replacements of settings without an equivalent.

`context.py` collects notices and environment variables. `builder.py` removes values that the gateway rejects, and
`yaml_text.py` writes the files.
"""
