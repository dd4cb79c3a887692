"""A real pgbouncer between a test and its server, where there is one on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg2
from sqlalchemy import make_url

from tests.postgres import _die_with_parent, _environment, _free_port, _identity
from tests.support.waiting import wait_until

PROGRAM = shutil.which("pgbouncer")
MISSING = "pgbouncer is not on PATH, so what batchrun does behind it was not tested"

_CONFIG = """
[databases]
* = {target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
"""

_TLS = """client_tls_sslmode = allow
client_tls_key_file = {home}/tls.key
client_tls_cert_file = {home}/tls.crt
"""


class PgBouncer:
    """One process over one server, for all its databases.

    mode: "transaction" or "session". size: connections to the server. tls: files with a key and a certificate for those
    clients that want TLS.
    """

    def __init__(self, server_url: str, mode: str, size: int, *, tls: tuple[Path, Path] | None = None) -> None:
        assert PROGRAM is not None
        url = make_url(server_url)
        self._identity = _identity()
        self._home = Path(tempfile.mkdtemp(prefix="batchrun-pgbouncer-"))
        self._port = _free_port()
        target = f"host={url.host} port={url.port or 5432} user={url.username}"
        target += f" password={url.password}" if url.password else ""
        config = _CONFIG.format(target=target, port=self._port, mode=mode, size=size)
        if tls:
            for given, name in zip(tls, ("tls.key", "tls.crt"), strict=True):
                shutil.copy(given, self._home / name)
            config += _TLS.format(home=self._home)
        (self._home / "config.ini").write_text(config)
        if self._identity:  # as root it refuses to run
            for path in (self._home, *self._home.iterdir()):
                os.chown(path, self._identity["user"], self._identity["group"])
        with (self._home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, str(self._home / "config.ini")],
                cwd=self._home,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509  # as for the server
                **self._identity,
            )

    def url(self, database: str, driver: str = "psycopg2") -> str:
        """The way through it."""
        return f"postgresql+{driver}://anybody@127.0.0.1:{self._port}/{database}"

    def start(self, database: str) -> None:
        """Return when it takes connections."""
        wait_until(lambda: self._takes_connections(database), what=(self._home / "log").read_text)

    def _takes_connections(self, database: str) -> bool:
        try:
            psycopg2.connect(self.url(database).replace("+psycopg2", "")).close()
        except psycopg2.OperationalError:
            return False
        return True

    def close(self) -> None:
        """End it, and with it its connections to the server."""
        self._process.kill()
        self._process.wait(10.0)
        shutil.rmtree(self._home, ignore_errors=True)
