"""Run the router of text-generation-inference (TGI) with the shard of the suite, until one of them ends.

    python tests/contracts/tgi_server.py ROUTER PYTHON DESCRIPTORS MODEL PORT

PYTHON runs tgi_shard.py with DESCRIPTORS and MODEL. Working files are in the folder `run` beside DESCRIPTORS.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

CONTEXT_TOKENS = 2048  # as in catalog.py
PREFILL_TOKENS = 1 << 15  # so that no prompt is split
SHARD = Path(__file__).with_name("tgi_shard.py")


def main() -> int:
    """Return the exit status of the process that ended first."""
    router, python, port = sys.argv[1], sys.argv[2], sys.argv[5]
    descriptors, model = Path(sys.argv[3]), Path(sys.argv[4])
    folder = descriptors.parent / "run"
    shutil.rmtree(folder, ignore_errors=True)
    # The router reads out/tokenizer.json if its Python lacks transformers, and the template from the configuration.
    (folder / "out").mkdir(parents=True)
    shutil.copy(model / "tokenizer.json", folder / "out")
    served = folder / model.name  # the name is `model_id` in /info
    served.mkdir()
    shutil.copy(model / "config.json", served)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = (model / "chat_template.jinja").read_text()
    (served / "tokenizer_config.json").write_text(json.dumps(config))
    socket = folder / "shard"
    shard = subprocess.Popen([python, SHARD, descriptors, model, socket], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: shard.terminate())
    while not socket.exists():
        if (ended := shard.poll()) is not None:
            return ended
        time.sleep(0.1)
    command = [
        router, "--master-shard-uds-path", socket, "--tokenizer-name", model.name, "--usage-stats", "off",
        "--hostname", "127.0.0.1", "--port", port, "--prometheus-port", "0",
        "--max-input-tokens", str(CONTEXT_TOKENS - 1), "--max-total-tokens", str(CONTEXT_TOKENS),
        "--max-batch-prefill-tokens", str(PREFILL_TOKENS),
    ]  # fmt: skip
    # The library of the Python that the router was built with.
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    environ = {**os.environ, "LD_LIBRARY_PATH": libraries}
    gate = subprocess.Popen(command, cwd=folder, env=environ, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: gate.terminate())
    while (status := gate.poll()) is None and (status := shard.poll()) is None:
        time.sleep(0.2)
    gate.kill()
    shard.kill()
    return status


if __name__ == "__main__":
    sys.exit(main())
