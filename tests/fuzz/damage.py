"""Random damage to text: changed bytes, and changed pieces of lists."""

import random

SCRAPS = [
    *(
        text.encode()
        for text in (",", ";", "\t", '"', '""', "\n", "\r\n", "[", "]", "{", "}", ":", "\\", "/", "../", " ")
    ),
    *(
        text.encode()
        for text in ("path", "label", "null", "true", "NaN", "-1", "1e999", "\u200b", "\u00e9", "\ufeff", "0" * 5000)
    ),
    *(b"\0", b"\xff", b"\xff\xfe", b"\xed\xa0\x80", b"PK\x03\x04", b"\x1b[2J", b"[" * 2000),
]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Applies one to four changes: removes, repeats, moves or inserts pieces, or changes bytes or the encoding."""
    for _ in range(chance.randint(1, 4)):
        start, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
        piece, there = content[start:end], chance.randrange(len(content) + 1)
        match chance.randrange(7):
            case 0:
                content = content[:start] + content[end:]
            case 1:
                content = content[:there] + piece[:200] + content[there:]
            case 2 | 3:
                content = content[:there] + chance.choice(SCRAPS) + content[there:]
            case 4:
                content = content[:there] + bytes([chance.randrange(256)]) + content[there + 1 :]
            case 5:
                lines = content.splitlines(keepends=True)
                chance.shuffle(lines)
                content = b"".join(lines)
            case 6 if chance.random() < 0.2:
                content = content.decode("utf-8", "replace").encode(chance.choice(["utf-16", "utf-16-le", "utf-8-sig"]))
    return content
