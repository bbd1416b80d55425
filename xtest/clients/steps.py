"""How the steps of a script are run and told, and how they wait."""

from __future__ import annotations

import asyncio
import time
import traceback
from typing import Any, Awaitable, Callable, Sequence

# The bound of the revocation requirement is measured elsewhere; here nothing may hang.
PATIENCE = 20.0


def eventually(what: str, probe: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while True:
        got = probe()
        if got:
            return got
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.01)


def run(steps: Sequence[Callable[[], Awaitable[None]]], needed: Callable[[], Awaitable[None]]) -> int:
    """Runs the steps in order; without the `needed` one none after it makes sense."""
    passed = failed = 0
    for step in steps:
        name = step.__name__.replace("_", " ")
        try:
            asyncio.run(step())
            passed += 1
            print(f"ok    {name}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
            if step is needed:
                break
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0
