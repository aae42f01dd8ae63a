"""Convert configurations of other gateways: `gkt-gateway import`.

`source.py` reads a LiteLLM proxy configuration with its lines. `litellm.py` converts it: the models in
`litellm_models.py`, their fallbacks and aliases in `litellm_routes.py`. `notes.py` collects what has no equivalent.
`yaml_text.py` writes the files.
"""
