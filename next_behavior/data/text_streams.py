"""The bytes of a text file as UTF-8: unzipped or converted from UTF-16 where its first bytes say so.

with open_text(file) as stream:
    stream.read(100)
"""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import IO

import pyarrow as pa

# The bytes that a file begins with, and its encoding; the mark of UTF-32 begins like that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LONGEST_MARK = 4
CHUNK = 1 << 20
# What a separator of two characters becomes: the "unit separator" of ASCII.
DOUBLE_COLON, ONE_BYTE = b"::", b"\x1f"


class TextStream(io.RawIOBase):
    """The bytes of a text file as UTF-8, with a line end at the end.

    Attributes:
        quotes: how many `"` have been read: an odd number means that one of them never closes.
        escaped: how many of them follow a backslash, which some programs write for a quote inside a field.
    """

    _source: IO[bytes] = io.BytesIO()  # what is closed where the file cannot be opened

    def __init__(self, file: Path, double_colon: bool = False) -> None:
        self.file = file
        self.quotes = self.escaped = 0
        self._double_colon = double_colon
        self._source = _unzipped(file)
        start = self._source.read(LONGEST_MARK)
        encoding = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
        self._decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
        self._held = b""  # a colon whose next byte is not known yet
        self._ready = self._converted(start, last=False)
        self._last = b"\n"
        self._ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, fewer only at the end: Arrow takes what it gets for a whole block."""
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(CHUNK), b""))
        while len(self._ready) < size and not self._ended:
            data = self._source.read(size)
            self._ended = not data
            self._ready += self._converted(data, last=not data)
            if self._ended and (self._ready or self._last)[-1:] not in (b"\n", b"\r"):
                self._ready += b"\n"
        data, self._ready = self._ready[:size], self._ready[size:]
        self.quotes += data.count(b'"')
        self.escaped += data.count(b'\\"')
        self._last = data[-1:] or self._last
        return data

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()

    def _converted(self, data: bytes, last: bool) -> bytes:
        if self._decoder is not None:
            try:
                data = self._decoder.decode(data, last).encode()
            except UnicodeError as error:
                raise ValueError(
                    f"got {self.file}, whose first bytes say UTF-16 or UTF-32 and whose rest is not ({error}); "
                    "expected text in one encoding: write it again as UTF-8"
                ) from error
        if self._double_colon:
            data, self._held = (self._held + data).replace(DOUBLE_COLON, ONE_BYTE), b""
            if data.endswith(b":") and not last:
                data, self._held = data[:-1], b":"
        return data


def open_text(file: Path, double_colon: bool = False) -> TextStream:
    """The bytes of a text file as UTF-8; with `double_colon`, each `::` is one byte."""
    return TextStream(file, double_colon)


def _unzipped(file: Path) -> pa.NativeFile:
    """The bytes of a file, unzipped where its first bytes say that it is gzipped."""
    with open(file, "rb") as f:
        start = f.read(4)
    zipped = start[:2] == b"\x1f\x8b"
    if file.name.lower().endswith(".gz") and not zipped:
        raise ValueError(f"got {file}, which is not gzip data; expected a gzipped file: rename it without .gz")
    if start == b"PAR1":
        raise ValueError(f"got {file}, which is Parquet; expected text: add --format parquet, or rename it to .parquet")
    if start == b"PK\x03\x04":
        raise ValueError(f"got {file}, a zip archive or a spreadsheet; expected text: unzip it, or save it as CSV")
    return pa.input_stream(str(file), compression="gzip" if zipped else None)


def not_utf8(file: Path, where: str, value: bytes) -> ValueError:
    return ValueError(
        f"got invalid UTF-8 in {file}, {where}: {value[:60]!r}; expected UTF-8 text: convert the file, for example "
        f"with iconv -f LATIN1 -t UTF-8 {file.name}"
    )
