"""What a person said, without what an agent's harness wraps around it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

# Blocks `<name ...> ... </name>` that harnesses add to a user's message: reminders, the state of a machine, files.
NOT_WORDS = (
    "additional_data",
    "attached_files",
    "attachments",
    "available_skills",
    "command-args",
    "command-message",
    "command-name",
    "current_file",
    "editorContext",
    "environment_context",
    "environment_details",
    "environment_info",
    "file",
    "file_content",
    "file_contents",
    "file_tree",
    "files",
    "folder_content",
    "ide_opened_file",
    "ide_selection",
    "local-command-caveat",
    "local-command-stderr",
    "local-command-stdout",
    "open_and_recently_viewed_files",
    "project_layout",
    "reminder",
    "reminderInstructions",
    "repo_map",
    "rules",
    "skill",
    "system-reminder",
    "system_reminder",
    "terminal_output",
    "user_info",
    "user_instructions",
    "user_rules",
    "workspace_info",
)
# Blocks that hold the person's own words: the tags go, what is between them stays.
WORDS = ("feedback", "task", "user_message", "user_query", "userRequest")
# How messages begin that a harness wrote alone, in the person's name.
HARNESS_ALONE = (
    "# AGENTS.md instructions for ",
    "Here are summaries of some files present in my git repository.",
    "I have *added these files to the chat*",
    "[Request interrupted by user",
)
_MOST_TAGS = 10_000  # of one message that are looked at


class Words:
    """
    Takes a harness's wrappers off a message, in one pass whatever the message holds.

    Args:
        more (`Iterable[str]`): names of further blocks that hold none of the person's words.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        blocks = "|".join(re.escape(name) for name in (*NOT_WORDS, *more))
        self._tag = re.compile(rf"<(/?)({blocks})(?:\s[^<>]*)?>")
        self._kept = re.compile(rf"</?(?:{'|'.join(WORDS)})>")

    def of(self, message: str) -> str:
        """The person's words in a message: what is left of it, which may be nothing."""
        if message.startswith(HARNESS_ALONE):
            return ""
        if "</" in message:
            message = self._kept.sub("", self._without_blocks(message))
        return message.strip()

    def _without_blocks(self, message: str) -> str:
        tags = list(islice(self._tag.finditer(message), _MOST_TAGS))
        last_end = {tag[2]: tag.end() for tag in tags if tag[1]}  # what is never closed is no block
        kept, place, inside = [], 0, ""
        for tag in tags:
            closes, name = bool(tag[1]), tag[2]
            if inside:
                if closes and name == inside:
                    inside, place = "", tag.end()
            elif not closes and last_end.get(name, 0) > tag.end():
                kept.append(message[place : tag.start()])
                inside = name
        return "\n".join([*kept, message[place:]])
