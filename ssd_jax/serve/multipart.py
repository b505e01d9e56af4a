"""The files of a multipart request (RFC 7578, RFC 2046)."""

import base64
import binascii
import quopri
import re
import urllib.parse
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from ssd_jax.errors import some_of
from ssd_jax.serve.pictures import Limits

# Fields of one request besides its files.
MOST_FIELDS = 32
_EXTENDED_NAME = re.compile(rb";\s*filename\*\s*=\s*\"?(utf-8|iso-8859-1)'[^']*'([^;\"\s]*)", re.I)
_DECODERS = {b"base64": base64.b64decode, b"quoted-printable": quopri.decodestring}


class Sent(NamedTuple):
    """A file of a multipart request, with its name and that of its field."""

    name: str
    field: str
    data: bytes


def split_multipart(body: bytes, content_type: str, limits: Limits) -> list[Sent]:
    """Every file, in order; 400 if there is none. Other fields are ignored.

    A part is a file if it has a `filename`, or `filename*` (RFC 8187), or the type of an image.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise HTTPException(400, "the Content-Type of the multipart body has no boundary.")
    parts = _Parts(limits)
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        parser.write(_without_preamble(body, b"--" + boundary))
        parser.finalize()
    except (FormParserError, binascii.Error) as error:
        raise HTTPException(400, f"the multipart body cannot be read: {error}.") from error
    if not parts.ended:
        raise HTTPException(
            400, "the multipart body ends before its closing boundary. Send all of it."
        )
    if not parts.files:
        names = some_of([repr(name[:100]) for name in set(parts.fields)])
        got = f"no file, but {names}" if parts.fields else "no part"
        raise HTTPException(400, f"got {got}, expected files: give each part a filename.")
    return parts.files


def _without_preamble(body: bytes, delimiter: bytes) -> bytes:
    """The body from its first boundary on, which is at the start of a line."""
    if body.startswith(delimiter):
        return body
    return body[max(body.find(b"\r\n" + delimiter), 0) :]


class _Parts:
    """The parts that a parser finds; too many are refused as they arrive."""

    def __init__(self, limits: Limits):
        self.files: list[Sent] = []
        self.fields: list[str] = []
        self.ended = False
        self._limits = limits
        self._name, self._value = bytearray(), bytearray()  # of a header, as they come
        self._headers: dict[bytes, bytes] = {}
        self._data = bytearray()

    def callbacks(self):
        """The callbacks of a `MultipartParser`."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._end_all,
        }

    def _begin(self) -> None:
        self._headers = {}
        self._data = bytearray()

    def _end_header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value).strip()
        self._name.clear()
        self._value.clear()

    def _end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        options = parse_options_header(disposition)[1]
        field, name = _text(options.get(b"name", b"")), _file_name(disposition, options)
        if name is None and not self._headers.get(b"content-type", b"").lower().startswith(
            b"image/"
        ):
            self._leave_out(field)
        else:
            self._take(field if name is None else name, field)

    def _take(self, name: str, field: str) -> None:
        most = self._limits.pictures
        if len(self.files) == most:
            raise HTTPException(
                400,
                f"got more than {most} images, expected {most} at most. Send them in several "
                "requests.",
            )
        encoding = self._headers.get(b"content-transfer-encoding", b"").lower()
        self.files.append(Sent(name, field, _DECODERS.get(encoding, bytes)(self._data)))

    def _leave_out(self, field: str) -> None:
        self.fields.append(field)
        if len(self.fields) > MOST_FIELDS:
            raise HTTPException(
                400, f"got more than {MOST_FIELDS} parts that are not files. Leave them out."
            )

    def _end_all(self) -> None:
        self.ended = True


def _file_name(disposition: bytes, options: dict[bytes, bytes]) -> str | None:
    if b"filename" in options:
        return _text(options[b"filename"])
    extended = _EXTENDED_NAME.search(disposition)
    if extended is None:
        return None
    charset, name = extended.groups()
    return urllib.parse.unquote(name, encoding=charset.decode(), errors="replace")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
