"""JSON schemas and the reference pages that are generated from them."""
