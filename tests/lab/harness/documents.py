"""The commands of README.md and docs/, as a reader finds them: the fenced blocks of `sh`."""

from dataclasses import dataclass

from .peerix import CHECKOUT


@dataclass(frozen=True)
class Block:
    """place: file and line; section: the heading of the second level above it; commands: its lines"""
    place: str
    section: str
    commands: tuple


def blocks(name):
    """The blocks of a document, in order."""
    found, section, commands = [], "", None
    for number, line in enumerate((CHECKOUT / name).read_text().splitlines(), 1):
        if commands is not None and line == "```":
            found.append(Block(f"{name}:{begin}", section, tuple(commands)))
            commands = None
        elif commands is not None:
            commands.append(line)
        elif line == "```sh":
            commands, begin = [], number
        elif line.startswith("## "):
            section = line[3:]
    if commands is not None:
        raise AssertionError(f"{name}:{begin}: a block has no end")
    return found


def sections(name):
    """Heading to its blocks, for those that have any."""
    found = {}
    for block in blocks(name):
        found.setdefault(block.section, []).append(block)
    return found
