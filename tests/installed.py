"""What the wheel does where it is installed, outside of any checkout: `make wheel` runs this."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import ir3de

COMMAND = str(Path(sys.prefix, "bin", "ir3de"))
PROMPT = "Find the roots of the polynomial x^2 - 5x + 6."
SECONDS = 300


def said(*command: str) -> str:
    """What a command prints; its error ends the run."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=environment).stdout


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def answer_of(address: str, question: dict[str, Any] | None = None) -> Any:
    """What the server answers, to a question or to a look."""
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)


def wait_for(server: subprocess.Popen[bytes], address: str) -> None:
    """Waits until the server is ready."""
    for _ in range(SECONDS):
        assert server.poll() is None, "the server ended early"
        try:
            answer_of(f"{address}/ready")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    raise TimeoutError(f"The server was not ready within {SECONDS} seconds.")


def serve(router: str) -> str:
    """Starts the server, asks it one question, stops it, and returns the answer's text."""
    port = free_port()
    server = subprocess.Popen([COMMAND, "serve", router, "--port", str(port), "--no-log"])
    try:
        wait_for(server, f"http://127.0.0.1:{port}")
        question = {"model": "ir3de", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}
        answer = answer_of(f"http://127.0.0.1:{port}/v1/chat/completions", question)
        return str(answer["choices"][0]["message"]["content"])
    finally:
        server.terminate()
        server.wait(30)


def main() -> int:
    """Tries the commands of a newcomer."""
    assert Path(ir3de.__file__).is_relative_to(sys.prefix), f"{ir3de.__file__} is not the installed package"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        router = str(Path(folder, "router"))
        assert router in said(COMMAND, "quickstart", "--output", router)
        routed = json.loads(said(COMMAND, "route", router, PROMPT, "--json"))
        assert routed["expert"] == "math", routed
        text = serve(router)
        assert text.strip(), "an empty answer"
        print(f"quickstart, route and serve work: {text!r}")
        shown = said(sys.executable, "-m", "ir3de.scripts.demo")
        assert PROMPT in shown, shown
        print("the demo works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
