"""Run the native server inside Switchyard's wheel: serve.py CONFIG PORT. Its own command is a Rust crate."""

import signal
import sys

from switchyard_rust.server import Server

with Server(sys.argv[1], port=int(sys.argv[2])):
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
