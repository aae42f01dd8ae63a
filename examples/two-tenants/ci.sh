#!/bin/sh
# Check config.yaml and the policies, and assert the plan of each sample request. Run it in this folder.
set -e
export GKT_ADMIN_KEY=not-the-real-one-but-long
gkt-gateway check
long=$(gkt-gateway check --explain requests/long.json --tenant acme --json)
short=$(gkt-gateway check --explain requests/short.json --tenant acme --json)
python3 - "$long" "$short" <<'END'
import json, sys
long, short = (json.loads(text)["plan"] for text in sys.argv[1:])
assert (long["mode"], long["guidance"]["tokens"]) == ("guided", 40), long
assert short["mode"] == "student", short
END
