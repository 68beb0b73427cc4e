"""Run commands in processes that are killed at their n-th operation on the disk.

    echo '{"arguments": ["append", "a", "--out", "b"], "kill_at": 7}' | python -m tests.killing

Modules are imported once, and each command runs in a fork. No thread is running before the fork.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import signal
import sys
from typing import Any

# Events of the audit hook that change the disk. An ``open`` for writing counts too.
EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.chmod", "os.truncate"}


def run(arguments: list[str], kill_at: int | None, *, exchanges: bool) -> int:
    """Run a command, and kill it before event number ``kill_at``, counted from 0.

    If the first argument is the path of a script, the script is run.

    Returns:
        Number of events that happened.
    """
    from recgrit import cli, disk

    count = 0

    def watch(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(given[2], int) and given[2] & os.O_ACCMODE
        if not writes and event not in EVENTS:
            return
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    if not exchanges:
        disk._exchange = lambda *_: False  # type: ignore[assignment]
    is_script = arguments[0].endswith(".py")
    sys.argv = arguments if is_script else ["recgrit", *arguments]
    sys.addaudithook(watch)
    try:
        if is_script:
            runpy.run_path(arguments[0], run_name="__main__")
        else:
            cli.main()
    except SystemExit as ended:
        if ended.code:
            raise
    return count


def main() -> None:
    """Serve requests of standard input, one JSON object per line, until the input ends."""
    import recgrit.pipeline
    import recgrit.serving.append
    import recgrit.stages  # noqa: F401

    logging.disable()
    answers = os.dup(1)
    for line in sys.stdin:
        request = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            if not request.get("loud"):
                os.dup2(nothing, 2)
            count = run(
                request["arguments"], request["kill_at"], exchanges=request.get("exchanges", True)
            )
            os.write(writing, str(count).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as found:
            told = found.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answer = {"code": code, "events": int(told) if told else None}
        os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
