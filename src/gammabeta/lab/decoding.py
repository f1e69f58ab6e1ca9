"""Text from a file's bytes: UTF-8, or UTF-16 and UTF-32 where that is certain; another encoding is named."""

import codecs
import itertools

from gammabeta.lab.task import TaskError

BYTE_ORDER_MARK = "\ufeff"
# The longer mark first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_UNMARKED = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_CHINESE = "的一是不了在人有我他这们来到时大地为子中你说生国年着就那和要她出也得里后自以会，。這們來時為說國裡後會"
_JAPANESE = "のにはをたがでてとしれさいるなもあらりこまうかよくっきん、。"
_KOREAN = "이다는에의을를가고하지은기로도사서어대한"
_RUSSIAN = "оеаинтсрвлкмдпуяыьгзбчйхжшю"
# Characters that are frequent in what an encoding of several bytes per character is used for.
_SEVERAL_BYTES = {
    "GB18030": _CHINESE,
    "BIG5": _CHINESE,
    "SHIFT_JIS": _JAPANESE,
    "EUC-JP": _JAPANESE,
    "EUC-KR": _KOREAN,
    "UTF-16LE": _CHINESE + _JAPANESE + _KOREAN,
    "UTF-16BE": _CHINESE + _JAPANESE + _KOREAN,
}
_ONE_BYTE = {"WINDOWS-1251": _RUSSIAN, "KOI8-R": _RUSSIAN}
_ENOUGH = 0.08  # of the characters that are not ASCII; one in a hundred is a frequent one where the encoding is wrong
_SAMPLE = 20_000  # bytes or characters that decide


def decode(raw: bytes, where: str) -> tuple[str, str]:
    """Decode a file's bytes, without byte order marks and with lines that end in a newline only.

    Args:
        raw: the file's bytes.
        where: the start of the error message, for example the file's name.

    Returns:
        The text, and its encoding: ``"utf-8"``, ``"utf-16-le"``, ``"utf-16-be"``, ``"utf-32-le"`` or ``"utf-32-be"``.

    Raises:
        TaskError: the bytes are of another encoding, which the message names if it can be recognized, or are no text.
    """
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return _strictly(raw[len(mark) :], encoding, where), encoding
    if b"\0" in raw:
        # Characters of UTF-16 and UTF-32 in the range of ASCII have bytes of zero. Such bytes are UTF-8, too.
        for encoding in _UNMARKED:
            text = _tried(raw, encoding)
            if text is not None and _is_readable(text):
                return _plain(text), encoding
        raise TaskError(
            f"{where}: expected a text in UTF-8, got a zero byte at {raw.index(0)}: it is another kind of file, or "
            "damaged; name a text."
        )
    return _strictly(raw, "utf-8", where), "utf-8"


def _strictly(raw: bytes, encoding: str, where: str) -> str:
    try:
        return _plain(raw.decode(encoding))
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise TaskError(
                f"{where}: expected {encoding.upper()} text, as its byte order mark says, got other bytes at "
                f"{error.start}: it is damaged or cut off; save it again, as UTF-8."
            ) from error
        likely = _recognized(raw[raw.rfind(b"\n", 0, error.start) + 1 :])
        if likely is None:
            todo = "convert it to UTF-8, or name another file if it is no text"
        else:
            todo = f"it is probably {likely}; convert it, as iconv -f {likely} -t UTF-8 does"
        line = raw.count(b"\n", 0, error.start) + 1
        raise TaskError(
            f"{where}: expected a text in UTF-8, got other bytes at {error.start} (line {line}): {todo}."
        ) from error


def _plain(text: str) -> str:
    """Remove byte order marks, which joined files hold in the middle too, and carriage returns at the ends of lines."""
    return text.replace(BYTE_ORDER_MARK, "").replace("\r\n", "\n").replace("\r", "\n")


def _tried(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _is_readable(text: str) -> bool:
    """Return whether a text has spaces or newlines as texts have, and no control or unassigned characters."""
    sample = text[:_SAMPLE]
    blank = sum(character in " \n\t\r\u3000，。、" for character in sample)
    return "\0" not in text and 200 * blank >= len(sample) and all(_is_text(character) for character in sample)


def _is_text(character: str) -> bool:
    return character.isprintable() or character.isspace() or character == BYTE_ORDER_MARK


def _recognized(raw: bytes) -> str | None:
    """Return the encoding that makes frequent characters of the bytes that are not ASCII; None if none does."""
    raw = raw[:_SAMPLE]
    likely = {encoding: _share(raw, encoding, frequent) for encoding, frequent in _SEVERAL_BYTES.items()}
    best = max(likely, key=likely.__getitem__)
    if likely[best] >= _ENOUGH:
        return best
    foreign = sum(byte >= 0x80 for byte in raw)
    beside = sum(left >= 0x80 and right >= 0x80 for left, right in itertools.pairwise(raw))
    if foreign > len(raw) // 4 or beside > foreign // 2:
        # Whole words are of such letters, or it is no text.
        likely = {encoding: _share(raw, encoding, frequent) for encoding, frequent in _ONE_BYTE.items()}
        best = max(likely, key=likely.__getitem__)
        return best if likely[best] >= 0.6 else None
    return "WINDOWS-1252" if all(byte >= 0x20 or byte in b"\t\n\r\f" for byte in raw) else None


def _share(raw: bytes, encoding: str, frequent: str) -> float:
    """Return which part of the characters that are not ASCII are frequent ones; 0 where the bytes cannot be decoded."""
    foreign = [character for character in raw.decode(encoding, "replace") if not character.isascii()]
    # The last character of the sample may be cut off, and a file may hold a few wrong ones.
    if foreign.count("\N{REPLACEMENT CHARACTER}") > 1 + len(foreign) // 100:
        return 0.0
    return sum(character.lower() in frequent for character in foreign) / max(len(foreign), 1)
