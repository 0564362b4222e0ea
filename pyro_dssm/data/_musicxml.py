"""Scores in MusicXML, reduced to their notes before a general reader sees them."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

from ._npz import open_archive, unpacked

__all__ = ["music_xml", "notes_alone"]

# What the notes of a score in MusicXML depend on, and the largest number in it that makes sense.
_ELEMENTS: dict[str, float | None] = {
    **dict.fromkeys(("score-partwise", "part-list", "score-part", "part-name", "part", "measure", "attributes")),
    **dict.fromkeys(("key", "mode", "time", "senza-misura", "note", "pitch", "step", "rest", "chord", "grace", "cue")),
    **dict.fromkeys(("voice", "type", "dot", "tie", "time-modification", "normal-type", "backup", "forward")),
    "divisions": 1e6, "duration": 1e8, "fifths": 14, "beats": 64, "beat-type": 128, "octave": 9, "alter": 4,
    "staves": 16, "staff": 16, "actual-notes": 1000, "normal-notes": 1000,
}  # fmt: skip
_ATTRIBUTES = ("id", "number", "implicit", "type")
_MAX_TEXT = 30


def music_xml(data: bytes, max_bytes: int) -> str:
    """The text of a score, which may lie in a zip archive with others that are about it."""
    if data.startswith(b"PK"):
        with open_archive(io.BytesIO(data)) as archive:
            scores = [info for info in archive.infolist() if not info.filename.startswith("META-INF")]
            scores = [info for info in scores if info.filename.lower().endswith((".xml", ".musicxml"))]
            if len(scores) != 1:
                raise ValueError(f"expected one score in the archive, got {len(scores)}")
            data = unpacked(archive, scores[0], max_bytes)
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    if "<!ENTITY" in text:  # a few lines of those stand for gigabytes
        raise ValueError("expected no entities of its own, got a declaration")
    return text


def notes_alone(text: str) -> str:
    """A score without what has no part in its notes, such as words and layout, and with numbers within reason.

    Music21 reads what is left faster, and would count up to some numbers one by one.
    """
    root = ElementTree.fromstring(text)
    waiting = [root]
    while waiting:  # no recursion, which deep scores would exhaust
        element = waiting.pop()
        element.attrib = {name: value for name, value in element.attrib.items() if name in _ATTRIBUTES}
        element.tail = None
        most, written = _ELEMENTS.get(element.tag), element.text or ""
        if most is not None and (
            len(written) > _MAX_TEXT or any(float(number) > most for number in re.findall(r"\d+", written))
        ):
            raise ValueError(f"expected {element.tag} of at most {most:g}, got {written[:_MAX_TEXT]}")
        element[:] = [child for child in element if child.tag in _ELEMENTS]
        waiting.extend(element)
    return ElementTree.tostring(root, encoding="unicode")
