"""Convert a GGUF file to a folder with safetensors, for engines that do not read GGUF.

    ENGINE/bin/python tests/contracts/convert_gguf.py model.gguf FOLDER

Runs with the Python of the engine, which has transformers and gguf.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    """Write the folder."""
    # The environment of the type checker lacks these packages.
    gguf: Any = import_module("gguf")
    transformers: Any = import_module("transformers")
    file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.chat_template = gguf.GGUFReader(file).fields["tokenizer.chat_template"].contents()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    # A model that was loaded from GGUF counts as quantized, and cannot be saved. Its weights are not quantized.
    config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype="float32")
    model.load_state_dict(loaded.state_dict())
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    unfinished.replace(folder)


if __name__ == "__main__":
    main()
