"""The documentation as the tests read it: code blocks, headings, links, and projects made of its blocks."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import CommandLine

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"# (\S+\.\w+)\n")
_WANTED_EXIT = re.compile(r"# exit (\d+)")


@dataclass(frozen=True)
class Block:
    """A fenced code block. file: what its first line, a comment, names; empty where it names none."""

    language: str
    text: str
    file: str


def blocks(text: str) -> list[Block]:
    found = []
    for language, body in _BLOCK.findall(text):
        named = _FILE_NAME.match(body)
        found.append(Block(language, body[named.end() :] if named else body, named[1] if named else ""))
    return found


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next of its own or a higher level; the heading itself left out."""
    lines = text.splitlines()
    at = lines.index(heading)
    level = len(heading) - len(heading.lstrip("#"))
    ends = re.compile(rf"#{{1,{level}}} ")
    end = next((n for n in range(at + 1, len(lines)) if ends.match(lines[n])), len(lines))
    return "\n".join(lines[at + 1 : end]) + "\n"


def anchors(text: str) -> set[str]:
    """The fragments that a page's headings have on GitHub."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[tuple[str, str]]:
    """Every link that leads to no other host: (path, fragment)."""
    found = re.findall(r"\]\(([^)\s]*)\)", _BLOCK.sub("", text))
    return [(path, fragment) for path, _, fragment in (link.partition("#") for link in found) if "://" not in path]


@dataclass(frozen=True)
class Project:
    """A folder with the files that a page's blocks name, and a way to run things in it."""

    folder: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("BATCHRUN_")}
        env["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
        )

    def carry_out(self, shell: str, batchrun: CommandLine) -> list[str]:
        """Call each line that begins with ``batchrun``; returns those whose exit code is not 0 or what ``# exit N`` says."""
        wrong = []
        for line in shell.splitlines():
            if line.startswith("batchrun "):
                wanted = _WANTED_EXIT.search(line)
                done = batchrun(*shlex.split(line, comments=True)[1:], cwd=self.folder)
                if done.returncode != (int(wanted[1]) if wanted else 0):
                    wrong.append(f"{line}\n-> {done.returncode}\n{done.stdout}{done.stderr}")
        return wrong


def project(page: Path, folder: Path) -> Project:
    """Write the files of a page's blocks."""
    for block in blocks(page.read_text()):
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
    return Project(folder)


def shell_of(page: Path, *, after: str = "") -> str:
    """All shell blocks of a page, in order. after: only those behind this heading."""
    text = page.read_text()
    text = text[text.index(after) :] if after else text
    return "".join(block.text for block in blocks(text) if block.language == "sh")
