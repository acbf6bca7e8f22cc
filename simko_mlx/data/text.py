"""Files of text, line by line, with the place of whatever can't be read."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from simko_mlx.types import UserError


def open_file(file: Path) -> BinaryIO:
    try:
        return open(file, "rb")
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}.") from error


def lines(file: Path, wanted: str) -> Iterator[tuple[int, str]]:
    """(number, text with its line break) of every line; a byte order mark is left out.

    Raises:
        UserError: a line isn't UTF-8; ``wanted`` says what to save the file as.
    """
    with open_file(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield number, line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file}:{number}: byte {error.start + 1} of this line is not UTF-8; save the "
                    f"file as UTF-8 text with {wanted}."
                ) from error
