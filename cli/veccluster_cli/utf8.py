"""Text on the command line. A module of its own, since each command waits for it."""

from typing import Any

import click


class TextType(click.ParamType[str]):
    """An argument that is text: bytes that are none can be sent to nobody."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text; a usage error says that it is none."""
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            raw = text.encode("utf-8", "surrogateescape")
            self.fail(f"must be text in UTF-8, is {str(raw)[1:]}", param, ctx)
        return text


TEXT = TextType()
