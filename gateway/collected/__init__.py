"""A bounded random sample of a route's requests, for evaluations with production traffic."""
