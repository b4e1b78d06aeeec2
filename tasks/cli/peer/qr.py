"""Draws a client configuration as a QR code in the terminal, for the WireGuard apps on phones."""

from __future__ import annotations

import io

import segno
from rich.text import Text

#: Modules of light around the code. Four by the standard; phones read two, and the code stays within 80 columns.
BORDER = 2


def qr_code(text: str) -> tuple[Text, int] | None:
    """The code in half blocks, and its width in columns; None for a text that no code holds (2,953 bytes).

    Light on dark whatever the terminal's own colours.
    """
    try:
        code = segno.make(text, error="l", micro=False)
    except segno.DataOverflowError:
        return None
    drawn = io.StringIO()
    code.terminal(drawn, border=BORDER, compact=True)
    found = Text(no_wrap=True, overflow="ignore", end="")
    for line in drawn.getvalue().splitlines():
        found.append(line, "bright_white on black")
        found.append("\n")
    return found, int(code.symbol_size(border=BORDER)[0])
