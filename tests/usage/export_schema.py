"""Print the JSON Schema of the export stream: python -m tests.usage.export_schema > docs/schema/receipt-export.json"""

from __future__ import annotations

import json

from gateway.usage.export_message import message_schema

if __name__ == "__main__":
    print(json.dumps(message_schema(), indent=2))
