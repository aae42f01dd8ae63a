"""`python -m gateway` is the `gkt-gateway` command."""

from gateway.cli import main

main()
