"""Real headless browsers that lay a page out and say what came of it.

Servo   comes by pip (servo-fetch, one wheel of 39 MB) and needs nothing else: it is always there. The alternatives were
        a Chromium inside PyQt6-WebEngine (211 MB, and a dozen system libraries that a bare machine does not have), and
        browsers that a script downloads from elsewhere, which a machine with a package index alone cannot.
        Its library leaves out what is hidden from screen readers, such as the labels of axes; its pictures are black, as
        it draws SVG without the page's style; and it never prefers dark. Sizes and texts are right.
Chromium  where one is on PATH; the last line of the suite says so where none is.

The page that is looked at stands in frames of given widths; a script around them measures, the page itself has none.
Servo's library asks only https, and no address of this machine: it is given a proxy of ours that answers in the
name of a host that does not exist, with a certificate made for the occasion. Nothing leaves the machine.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import trustme

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MISSING = "no Chromium is on PATH, so the report was laid out by Servo alone, and in no dark scheme"
HOST = "report.test"
"""A name that no server of names knows (RFC 6761)."""

_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=16384"}
"""Servo's library has more thread-local data than glibc keeps room for where a program loads it late."""

_SERVO = f"""
import os, sys, servo_fetch
page = servo_fetch.Client().fetch("https://{HOST}/around.html", timeout=60)
sys.stdout.write(page.html)
sys.stdout.flush()
os._exit(0)  # Servo's own threads do not end in an orderly way
"""
_MEASURE = """
const looked = frame => {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  for (const one of page.querySelectorAll("details")) one.open = true;
  const background = one => {
    for (; one; one = one.parentElement) {
      const found = view.getComputedStyle(one).backgroundColor;
      if (!/^rgba\\(.*, 0\\)$|transparent/.test(found)) return found;
    }
    return "rgb(255, 255, 255)";
  };
  const outside = [], unseen = [], colours = new Set();
  let texts = 0;
  for (const one of page.body.querySelectorAll("*")) {
    if (one.closest("svg, .cards thead") && one.localName != "svg") continue;
    const box = one.getBoundingClientRect(), style = view.getComputedStyle(one);
    if (style.display == "none" || one.closest(".opt")) continue;
    if (one.closest("[aria-hidden]") && !one.getClientRects().length) continue;  // Servo's library leaves these out
    if (box.right > root.clientWidth + 1 || box.left < -1) outside.push(`${one.localName}.${one.className} ${box.right}`);
    if (![...one.childNodes].some(node => node.nodeType == 3 && node.data.trim())) continue;
    texts += 1;
    colours.add(style.color + " on " + background(one));
    if (box.width < 1 || box.height < 8 || style.visibility != "visible" || parseFloat(style.fontSize) < 11)
      unseen.push(`${one.localName} ${one.textContent.slice(0, 40)} ${box.width}x${box.height} ${style.fontSize}`);
  }
  const pictures = [...page.querySelectorAll("svg[role=img]")].map(one => one.getBoundingClientRect());
  return {page: frame.dataset.page, width: view.innerWidth, scrolls: root.scrollWidth > root.clientWidth, outside, unseen, texts,
    colours: [...colours], pictures: pictures.map(box => [box.width, box.height]),
    scripts: page.scripts.length + page.images.length, alerts: frame.alerts || 0};
};
addEventListener("load", () => {
  let found;
  try { found = [...document.querySelectorAll("iframe")].map(looked); } catch (error) { found = String(error.stack || error); }
  const told = document.createElement("pre");
  told.textContent = JSON.stringify(found);
  document.body.replaceChildren(told);
});
"""


@dataclass(frozen=True)
class Look:
    """How a page came out at a width. outside, unseen: elements with what is wrong with them. colours: "text on ground"."""

    page: str
    width: int
    scrolls: bool
    outside: list[str]
    unseen: list[str]
    texts: int
    colours: list[str]
    pictures: list[tuple[float, float]]
    scripts: int
    alerts: int


def _around(names: Mapping[str, str], widths: tuple[int, ...]) -> str:
    frames = "".join(
        f'<iframe data-page="{name}" src="{name}.html" style="border:0;width:{width}px;height:700px"></iframe>'
        for name in names
        for width in widths
    )
    return f"<!doctype html><meta charset=utf-8><title>around</title><body>{frames}<script>{_MEASURE}</script>"


def _looks(dom: str) -> list[Look]:
    found = re.search(r"<pre[^>]*>(.*?)</pre>", dom, re.DOTALL)
    assert found, f"the browser measured nothing: {dom[:2000]}"
    told: Any = json.loads(html.unescape(found[1]))
    assert isinstance(told, list), told
    return [Look(**one) for one in told]


def by_servo(pages: Mapping[str, str], widths: tuple[int, ...], folder: Path) -> list[Look]:
    """Lay pages out, each at each width."""
    files = {f"{name}.html": text for name, text in pages.items()} | {"around.html": _around(pages, widths)}
    import trustme  # with cryptography it takes a while, and every test process imports this module

    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    with _serving(files, authority) as proxy:
        environ = {**os.environ, **_ENVIRONMENT, "SSL_CERT_FILE": str(folder / "authority.pem"), "XDG_RUNTIME_DIR": str(folder)}
        environ |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy)
        environ |= {"HOME": str(folder), "no_proxy": "", "NO_PROXY": ""}
        return _looks(_output([sys.executable, "-c", _SERVO], environ))


def by_chromium(pages: Mapping[str, str], widths: tuple[int, ...], folder: Path, *, dark: bool = False) -> list[Look]:
    """The same; dark: for somebody who prefers that."""
    assert CHROMIUM is not None
    for name, text in {**pages, "around": _around(pages, widths)}.items():
        (folder / f"{name}.html").write_text(text, "utf-8")
    command = [
        CHROMIUM, "--headless", "--disable-gpu", "--no-sandbox", "--hide-scrollbars", "--allow-file-access-from-files",
        "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={int(not dark)}", "--dump-dom", (folder / "around.html").as_uri(),
    ]  # fmt: skip
    return _looks(_output(command, {**os.environ, "HOME": str(folder)}))


def _output(command: list[str], environ: Mapping[str, str]) -> str:
    done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    if done.returncode and "cannot open shared object file" in done.stderr:  # a library that nearly every system has
        pytest.skip(f"NOT LOOKED AT: this browser cannot be loaded here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@contextmanager
def _serving(files: Mapping[str, str], authority: trustme.CA) -> Iterator[str]:
    """A proxy on this machine that answers for HOST itself. Yields its URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(files, context))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(files: Mapping[str, str], context: ssl.SSLContext) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_CONNECT(self) -> None:
            if self.path != f"{HOST}:443":
                self.send_error(403)
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            self.connection = context.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
            self.close_connection = False

        def finish(self) -> None:
            super().finish()
            self.rfile.close()
            self.connection.close()

        def do_GET(self) -> None:
            found = files.get(self.path.rpartition("/")[2])
            body = b"" if found is None else found.encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said: Any) -> None:
            """Not a word: a browser asks for icons."""

    return Handler
