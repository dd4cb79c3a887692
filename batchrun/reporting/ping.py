"""One ping, as a program of its own: so that it holds up nothing, and can be ended whatever it hangs in (a resolver, a proxy).

stdin: JSON with url, body, agent, tries, try_s, pause_s; the URL is a secret, and arguments are seen by everybody on the machine
stdout: why it failed; exit code 0: the server has taken it

It is run by its path with ``python -I``: it may import nothing but the standard library.
"""

from __future__ import annotations

import http
import http.client
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

PASSING = (408, 425, 429)
"""Refusals that may pass, beside those from 500 on."""


def ask(wanted: dict[str, Any]) -> tuple[str, bool]:
    """Ask once: why it failed, empty where it did not, and whether another try may help."""
    headers = {"User-Agent": wanted["agent"], "Content-Type": "text/plain; charset=utf-8"}
    body = wanted["body"].encode("utf-8", "backslashreplace")
    request = urllib.request.Request(wanted["url"], data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=wanted["try_s"]) as answer:
            answer.read(1000)
        return "", False
    except urllib.error.HTTPError as error:
        known = error.code in http.HTTPStatus.__members__.values()
        name = f" {http.HTTPStatus(error.code).phrase}" if known else ""
        return f"it answered {error.code}{name}", error.code >= 500 or error.code in PASSING
    except urllib.error.URLError as error:
        return f"{error.reason}", True
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{type(error).__name__}: {error}", not isinstance(error, ValueError)


def ask_in_time(wanted: dict[str, Any]) -> tuple[str, bool]:
    """The same within ``try_s`` in all: urlopen's own limit is for each step, and a resolver knows none."""
    found: list[tuple[str, bool]] = []
    thread = threading.Thread(target=lambda: found.append(ask(wanted)), daemon=True)
    thread.start()
    thread.join(wanted["try_s"])
    return found[0] if found else (f"no answer within {wanted['try_s']:g} s", True)


def main() -> int:
    """Try until it is taken."""
    wanted = json.load(sys.stdin)
    why, again = "", True
    for number in range(wanted["tries"]):
        if number:
            time.sleep(wanted["pause_s"])
        why, again = ask_in_time(wanted)
        if not again:
            break
    print(why, flush=True)  # noqa: T201 - its answer to who started it
    return 1 if why else 0


if __name__ == "__main__":
    os._exit(main())  # a thread may still hang in a try that was given up
