"""A database that is a SQLite file: is it one, may we write there, and does its file system keep locks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from batchrun.checkup.findings import Finding, ok, problem
from batchrun.checkup.servers import refused
from batchrun.checkup.subject import Patient, Subject
from batchrun.database.failures import message_of
from batchrun.database.urls import sqlite_file

MOUNTS = Path("/proc/self/mounts")
ACROSS_A_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "9p", "virtiofs", "ncpfs", "fuse.sshfs",
     "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.cephfs", "davfs", "fuse.davfs2", "drvfs", "vboxsf"}
)  # fmt: skip


def sqlite(subject: Subject, mounts: Path = MOUNTS) -> Iterator[Finding]:
    for patient in subject.patients:
        if patient.is_sqlite and patient.engine is not None:
            file = sqlite_file(patient.engine.url)
            yield _file(patient, file)
            yield _file_system(patient, file, mounts)


def _file(patient: Patient, file: Path) -> Finding:
    check = patient.named("database")
    if not file.parent.is_dir():
        return problem(check, f"There is no folder {file.parent} for the SQLite file", "Make it, or correct the URL.")
    if not os.access(file.parent, os.W_OK):
        return problem(
            check, f"{file.parent} may not be written; SQLite and batchrun keep files of their own beside the database",
            "Give this user the right, or put the database where it has it.",
        )  # fmt: skip
    if not file.exists():
        return ok(check, f"SQLite: {file} is not there yet; the first run makes it")
    if not os.access(file, os.R_OK | os.W_OK):
        return problem(check, f"{file} may not be read and written by this user", "Give this user the right (chown, chmod).")
    return refused(check, patient) if patient.error is not None else _opened(patient, file)


def _opened(patient: Patient, file: Path) -> Finding:
    check = patient.named("database")
    assert patient.engine is not None
    try:
        with patient.engine.connect() as connection:
            mode = str(connection.scalar(text("PRAGMA journal_mode")))
            connection.execute(text("SELECT count(*) FROM sqlite_master"))
    except SQLAlchemyError as error:
        return problem(check, f"{file} cannot be read: {message_of(error)}", "Is it a SQLite database? Name another file.")
    ahead = "" if mode == "wal" else "; the first run turns write-ahead logging on"
    return ok(check, f"SQLite: {file}, {file.stat().st_size / 1e6:,.1f} MB, journal {mode}{ahead}")


def _file_system(patient: Patient, file: Path, mounts: Path) -> Finding:
    kind = kind_of(file, mounts)
    check = patient.named("file system")
    if kind in ACROSS_A_NETWORK:
        return problem(
            check, f"{file.parent} is on {kind}, a file system across a network or a machine's border: SQLite's "
            "write-ahead log needs memory that all its users share, and locks there may not hold",
            "Put the file on a disk of this machine, or use PostgreSQL.",
        )  # fmt: skip
    return ok(check, f"{kind or 'unknown'}: of this machine" if kind else "It is not known here; it must not be across a network")


def kind_of(file: Path, mounts: Path) -> str:
    """The type of the file system a file is on, or would be; empty where nobody knows."""
    try:
        lines = [line.split()[1:3] for line in mounts.read_text().splitlines() if len(line.split()) > 2]
        place = Path(os.path.realpath(file.parent))
    except OSError:
        return ""
    found, longest = "", -1
    for raw, kind in lines:
        at = raw.replace("\\040", " ")
        if place.is_relative_to(at) and len(at) >= longest:  # a later mount hides an earlier one
            found, longest = kind, len(at)
    return found
