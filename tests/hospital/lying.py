"""A DICOMweb server on a raw socket with one wrong answer: `LIES` lists where, how, and the required outcome.

It has four studies with one radiograph each. Three are served correctly; the second, or the search for studies, is
wrong. `Lie.outcome` is "fetched" if the wrong answer must do no harm, else the text that the reason must contain.
"""

import gzip
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Query = dict[str, str]
Answer = Callable[["Liar", socket.socket, Query], None]
MULTIPART = 'multipart/related; type="application/dicom"; boundary=B'
JSON = "application/dicom+json"


class Liar:
    """The server. `routes`: answers in place of the honest ones, by resource."""

    def __init__(self, objects: list[bytes], uids: list[tuple[str, str, str]], routes: dict[str, Answer]) -> None:
        self.objects, self.uids, self.routes = objects, uids, routes
        self.asked: list[tuple[str, Query]] = []
        self.times = 0  # how often the wrong answer was sent
        self.one_by_one = False  # whether it tells the objects of a series
        self.kinds: dict[str, str] = {}  # modality of a series, if it is not CR
        self.stopped = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/web"

    def stop(self) -> None:
        self.stopped.set()
        self.socket.close()

    def _serve(self) -> None:
        while not self.stopped.is_set():
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            try:
                while self._one(connection):
                    pass
            except OSError:
                return

    def _one(self, connection: socket.socket) -> bool:
        head = b""
        while b"\r\n\r\n" not in head:
            block = connection.recv(1 << 16)
            if not block:
                return False
            head += block
        path, _, question = head.split()[1].decode().removeprefix("/web/").partition("?")
        query = dict(part.split("=", 1) for part in question.split("&") if part)
        self.asked.append((path, query))
        place = self._place(path)
        if place in self.routes:
            self.times += 1
            self.routes[place](self, connection, query)
        else:
            self.honest(connection, path, query)
        return not self.stopped.is_set()

    def _place(self, path: str) -> str:
        """The requested resource, if its answer may be false: "studies", or of the second study "series", ..."""
        if path == "studies":
            return "studies"
        if f"/{self.uids[1][0]}/" not in f"{path}/":
            return ""
        return next(name for ends, name in _PLACES if re.fullmatch(ends, path))

    def honest(self, connection: socket.socket, path: str, query: Query) -> None:
        parts = path.split("/")
        of = [one for one in zip(self.objects, self.uids, strict=True) if len(parts) > 1 and one[1][0] == parts[1]]
        start, most = int(query.get("offset", 0)), int(query.get("limit", 100))
        if path == "studies":
            say(connection, rows(self.studies()[start : start + most]))
        elif path.endswith("/series"):
            say(connection, rows([self.series(uids) for uids in dict.fromkeys(uids[:2] for _, uids in of)][start:]))
        elif path.endswith("/instances") and self.one_by_one:
            say(connection, rows([{"00080018": uids[2]} for _, uids in of if uids[1] == parts[3]][start:]))
        elif "/instances" in path and not self.one_by_one:
            say(connection, b"", 404)
        else:
            data = [data for data, uids in of if uids[1] == parts[3] and (len(parts) < 6 or uids[2] == parts[5])]
            say(connection, multipart(*data), kind=MULTIPART)

    def studies(self) -> list[dict[str, Any]]:
        return [{"0020000D": study, "00080020": "20200101"} for study in dict.fromkeys(uids[0] for uids in self.uids)]

    def series(self, uids: tuple[str, ...], **changes: Any) -> dict[str, Any]:
        count = sum(one[1] == uids[1] for one in self.uids)
        return {"0020000E": uids[1], "00080060": self.kinds.get(uids[1], "CR"), "00201209": count, **changes}


_PLACES = [
    (r"studies/[^/]+/series", "series"),
    (r"studies/[^/]+/series/[^/]+", "objects"),
    (r"studies/[^/]+/series/[^/]+/instances", "instances"),
    (r"studies/[^/]+/series/[^/]+/instances/[^/]+", "object"),
]


def rows(items: list[dict[str, Any]]) -> bytes:
    return json.dumps([{tag: {"vr": "UI", "Value": [value]} for tag, value in item.items()} for item in items]).encode()


def multipart(*objects: bytes, boundary: str = "B", newline: bytes = b"\r\n", head: bytes | None = None) -> bytes:
    head = b"Content-Type: application/dicom" + newline if head is None else head
    dash = b"--" + boundary.encode()
    return b"".join(dash + newline + head + newline + data + newline for data in objects) + dash + b"--" + newline


def say(connection: socket.socket, body: bytes, status: int = 200, kind: str = JSON, **headers: str) -> None:
    """A complete answer."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode("utf-8") + body)


# -- what a server may do wrong ----------------------------------------------------------------------------------------


def answer(body: bytes = b"", status: int = 200, kind: str = JSON, **headers: str) -> Answer:
    return lambda liar, connection, query: say(connection, body, status, kind, **headers)


def sends(build: Callable[[bytes], bytes], kind: str = MULTIPART, status: int = 200, **headers: str) -> Answer:
    """The second object, wrapped by `build`."""
    return lambda liar, connection, query: say(connection, build(liar.objects[1]), status, kind, **headers)


def raw(*pieces: bytes, then: str = "close") -> Answer:
    """Bytes as they are; `{object}` is the second object. Then the connection is closed, reset or held open."""

    def tell(liar: Liar, connection: socket.socket, query: Query) -> None:
        for piece in pieces:
            connection.sendall(piece.replace(b"{object}", liar.objects[1]))
        if then == "hold":
            liar.stopped.wait(30)
        elif then == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        raise OSError

    return tell


def drips(start: bytes, drop: bytes, every: float = 0.05) -> Answer:
    """Some bytes, and then a few repeated for ever."""

    def tell(liar: Liar, connection: socket.socket, query: Query) -> None:
        connection.sendall(start)
        while not liar.stopped.wait(every):
            connection.sendall(drop)

    return tell


def once(fault: Answer, place: str = "objects") -> Answer:
    """Only the first time."""

    def tell(liar: Liar, connection: socket.socket, query: Query) -> None:
        if liar.times == 1:
            return fault(liar, connection, query)
        liar.honest(connection, *_path(liar))

    return tell


def refuses(word: str, reason: bytes = b"not supported") -> Answer:
    """400 if a parameter is, or matches, `word`."""

    def tell(liar: Liar, connection: socket.socket, query: Query) -> None:
        if any(re.search(word, f"{name}={value}") for name, value in query.items()):
            return say(connection, reason, 400, "text/plain")
        liar.honest(connection, *_path(liar))

    return tell


def _path(liar: Liar) -> tuple[str, Query]:
    return liar.asked[-1]


def series(**changes: Any) -> Answer:
    """The second study's series with other values; "_" in a name is dropped."""
    given = {name.strip("_"): value for name, value in changes.items()}
    return lambda liar, connection, query: say(connection, rows([liar.series(liar.uids[1], **given)]))


def pages(of: Callable[[Liar, int, int], list[int]]) -> Answer:
    """The studies whose numbers `of(liar, offset, limit)` gives."""

    def tell(liar: Liar, connection: socket.socket, query: Query) -> None:
        numbers = of(liar, int(query.get("offset", 0)), int(query.get("limit", 100)))
        say(connection, rows([liar.studies()[number] for number in numbers]))

    return tell


def endless(liar: Liar, connection: socket.socket, query: Query) -> None:
    """New studies on every page, for ever."""
    start = int(query.get("offset", 0))
    say(connection, rows(liar.studies() if not start else [{"0020000D": f"1.9.{start + k}"} for k in range(2)]))


def more_than_shown(liar: Liar, connection: socket.socket, query: Query) -> None:
    start = int(query.get("offset", 0))
    found = liar.studies()[start : start + 2] if start < 4 else []
    say(connection, rows(found), Warning='299 web: "There are 7 additional results that can be requested"')


def no_empty_pages(liar: Liar, connection: socket.socket, query: Query) -> None:
    if int(query.get("offset", 0)):
        return say(connection, b"", 404)
    say(connection, rows(liar.studies()))


def second_page_fails(liar: Liar, connection: socket.socket, query: Query) -> None:
    if int(query.get("offset", 0)):
        return say(connection, b"", 500)
    say(connection, rows(liar.studies()))


def ignores_days(liar: Liar, connection: socket.socket, query: Query) -> None:
    """Also an old study, whatever the query."""
    start = int(query.get("offset", 0))
    old = {"0020000D": "1.9.9", "00080020": "19990101"}
    say(connection, rows([old, *liar.studies()][start:]))


OK = b"HTTP/1.1 200 OK\r\n"
HEAD = OK + b"Content-Type: " + MULTIPART.encode() + b"\r\n"
PART = b"--B\r\nContent-Type: application/dicom\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
HTML = b"<html><head><title>Sign in</title></head><body>login</body></html>"
BOMB = gzip.compress(bytes(64 << 20), 9)
JSON_BOMB = gzip.compress(b"[" + b" " * (64 << 20) + b"]", 9)


@dataclass(frozen=True)
class Lie:
    """A false answer: of which resource, its content, and the expected outcome."""

    place: str
    how: Answer
    outcome: str
    slow: bool = False  # ends by a limit of time
    wanted: dict[str, Any] = field(default_factory=dict)


def _objects() -> Iterator[tuple[str, Lie]]:
    def lie(name: str, how: Answer, outcome: str, slow: bool = False) -> tuple[str, Lie]:
        return name, Lie("objects", how, outcome, slow)

    yield lie("part without end", drips(HEAD + b"\r\n" + PART, bytes(1 << 20), 0.0), "more than")
    yield lie(
        "single part without end",
        drips(OK + b"Content-Type: application/dicom\r\n\r\n", bytes(1 << 20), 0.0),
        "more than",
    )
    yield lie("a byte at a time", drips(HEAD + b"\r\n" + PART, b"x"), "slower than", True)
    yield lie("head a byte at a time", drips(OK + b"X-A: ", b"x"), "slower than", True)
    yield lie("status line a byte at a time", drips(b"HTTP/1.1 200 ", b"x"), "slower than", True)
    yield lie("chunk length a byte at a time", drips(CHUNKED + b"1;a=", b"x"), "slower than", True)
    yield lie("tiny chunks for ever", drips(CHUNKED, b"1\r\nx\r\n"), "slower than", True)
    yield lie("early answers for ever", drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), "slower than", True)
    yield lie("no answer", raw(then="hold"), "no byte for", True)
    yield lie("never closed", raw(HEAD + b"\r\n", PART, b"abc", then="hold"), "no byte for", True)
    yield lie("whole but never closed", raw(HEAD + b"\r\n", PART + b"{object}\r\n--B--\r\n", then="hold"), "fetched")
    yield lie("head without end", drips(OK, b"X-A: b\r\n" * 4096, 0.0), "broken off, or no HTTP")
    yield lie("a header without end", drips(OK + b"X-A: ", b"x" * 65536, 0.0), "broken off, or no HTTP")
    yield lie("no HTTP", raw(b"220 mail.example ESMTP\r\n"), "broken off, or no HTTP")
    yield lie("closed at once", raw(), "broken off, or no HTTP")
    yield lie(
        "reset in the middle",
        raw(HEAD + b"Content-Length: 9999\r\n\r\n" + PART, then="reset"),
        "connection broke|broken off",
    )
    yield lie("cut short", raw(HEAD + b"Content-Length: 9999\r\n\r\n" + PART + b"abc"), "broken off")
    yield lie("cut short without a length", raw(HEAD + b"\r\n" + PART + b"abc"), "ends early")
    yield lie("length that is none", raw(HEAD + b"Content-Length: -5\r\n\r\n" + PART), "broken off, or no HTTP")
    yield lie(
        "two lengths", raw(HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"), "broken off, or no HTTP"
    )
    for status in (400, 404, 406, 410, 418, 500, 501):
        yield lie(f"status {status}", answer(b"no", status), f"{status}")
    yield lie("status 404 with a body without end", drips(b"HTTP/1.1 404 X\r\n\r\n", b"x"), "slower than", True)
    yield lie("status 400 with a body never closed", raw(b"HTTP/1.1 400 X\r\n\r\n", then="hold"), "answers 400", True)
    yield lie("status 500 with a long body", answer(b"busy " * 99_999, 500, "text/plain"), "status 500")
    yield lie("status 403", answer(b"no", 403), "give credentials")
    yield lie("redirection", answer(b"", 302, Location="http://127.0.0.1:9/secret"), "not followed")
    yield lie("redirection to itself", answer(b"", 307, Location="."), "not followed")
    yield lie("login page", answer(HTML, kind="text/html"), "no DICOM objects")
    yield lie("a picture", answer(b"\x89PNG", kind="image/png"), "no DICOM objects")
    yield lie("no content type", raw(OK + b"Content-Length: 2\r\n\r\nxx"), "no DICOM objects")
    yield lie("204", answer(b"", 204), "no DICOM objects|without objects")
    yield lie("no parts", answer(b"--B--\r\n", kind=MULTIPART), "without objects")
    yield lie("a part of the series", sends(multipart, status=206), "only a part")
    yield lie("another boundary", sends(lambda data: multipart(data * 20, boundary="C")), "boundary")
    yield lie("head of a part without end", answer(b"--B\r\n" + b"X: y\r\n" * 20_000, kind=MULTIPART), "boundary|head")
    yield lie("too many parts", answer(multipart(*[b"x"] * 60), kind=MULTIPART), "more than 50 parts")
    yield lie("packed bomb", answer(BOMB, kind=MULTIPART, Content_Encoding="gzip"), "boundary|more than")
    bomb = gzip.compress(PART + bytes(64 << 20), 9)
    yield lie("packed bomb in a part", answer(bomb, kind=MULTIPART, Content_Encoding="gzip"), "more than")
    yield lie("packed in a strange way", answer(b"xx", kind=MULTIPART, Content_Encoding="br"), "not requested")
    cut = sends(lambda data: gzip.compress(multipart(data))[:-400], Content_Encoding="gzip")
    yield lie("packed and cut short", cut, "ends early|damaged")
    yield lie("packed, but not so", sends(multipart, Content_Encoding="gzip"), "damaged")
    yield lie(
        "packed without being asked",
        sends(lambda data: gzip.compress(multipart(data)), Content_Encoding="gzip"),
        "fetched",
    )
    for name, boundary in {
        "blanks": "a b c",
        "commas": "a,b",
        "a colon": "x:y=z",
        "quotes' kin": "a'b(c)",
        "70 letters": "q" * 70,
    }.items():
        kind = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
        yield lie(f"boundary with {name}", sends(lambda data, b=boundary: multipart(data, boundary=b), kind), "fetched")
    yield lie(
        "boundary without quotes and with a comma",
        sends(lambda data: multipart(data, boundary="a,b"), "multipart/related; boundary=a,b; type=x"),
        "fetched",
    )
    yield lie("boundary in capitals", sends(multipart, 'Multipart/Related;BOUNDARY="B"'), "fetched")
    yield lie("boundary not announced", sends(multipart, "multipart/related"), "fetched")
    yield lie("multipart/mixed", sends(multipart, "multipart/mixed; boundary=B"), "fetched")
    yield lie("words before", sends(lambda data: b"hello\r\n\r\n" + multipart(data)), "fetched")
    yield lie("an empty line before", sends(lambda data: b"\r\n" + multipart(data)), "fetched")
    yield lie("lines end in LF", sends(lambda data: multipart(data, newline=b"\n")), "fetched")
    yield lie(
        "blanks after the boundary", sends(lambda data: multipart(data).replace(b"--B\r\n", b"--B  \t\r\n")), "fetched"
    )
    yield lie("part without a head", sends(lambda data: multipart(data, head=b"")), "fetched")
    yield lie("words after the end", sends(lambda data: multipart(data) + b"goodbye\r\n--B\r\n"), "fetched")
    yield lie("boundary as the beginning of something", sends(lambda data: multipart(data + b"\r\n--Bx")), "fetched")
    yield lie("a single part", sends(bytes, "application/dicom"), "fetched")
    yield lie(
        "a single part with parameters",
        sends(bytes, "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"),
        "fetched",
    )
    yield lie("a single part of bytes", sends(bytes, "application/octet-stream"), "fetched")
    yield lie("the same object twice", sends(lambda data: multipart(data, data)), "fetched")
    yield lie("a connection that is gone", once(raw()), "fetched")
    for text in (
        "²",
        "-5",
        "999999999",
        "9" * 30,
        "Wed, 21 Oct 2015 07:28:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "soon",
        "",
    ):
        yield lie(f"retry after {text[:12]!r}", once(answer(b"", 503, Retry_After=text)), "fetched")


def _series() -> Iterator[tuple[str, Lie]]:
    def lie(name: str, how: Answer, outcome: str, slow: bool = False) -> tuple[str, Lie]:
        return name, Lie("series", how, outcome, slow)

    yield lie("deep JSON", answer(b"[" * 200_000 + b"]" * 200_000), "in place of DICOM JSON")
    yield lie("deep objects", answer(b'[{"a":' * 100_000), "in place of DICOM JSON")
    yield lie("very many entries", answer(b"[" + b"{}," * 1_500_000 + b"{}]"), "entries")
    yield lie("JSON cut short", answer(b'[{"0020000E"'), "in place of DICOM JSON")
    yield lie("JSON login page", answer(HTML, kind="text/html"), "a web page in place of DICOM JSON")
    yield lie("JSON that is no list", answer(b'{"error": 1}'), "not a list")
    yield lie("JSON packed bomb", answer(JSON_BOMB, Content_Encoding="gzip"), "more than")
    yield lie(
        "JSON without end", drips(OK + b"Content-Type: application/json\r\n\r\n[", b" " * 65536, 0.0), "more than"
    )
    yield lie(
        "JSON never closed", raw(OK + b"Content-Type: application/json\r\n\r\n[", then="hold"), "no byte for", True
    )
    yield lie("series status 500", answer(b"", 500), "status 500")
    yield lie("series status 404", answer(b"", 404), "404")
    yield lie(
        "entries that are none",
        answer(b'[1, null, "x", [], {"0020000E": 5}, {"0020000E": {"Value": {}}}]'),
        "without a UID",
    )
    for text in ("../../studies", "1.2/../3", "1.2?x", "1.2%2F", "１.２", "", "1." * 200 + "1"):
        yield lie(f"series UID {text[:14]!r}", series(_0020000E=text), "without a UID")
    for value in (
        "²",
        "9" * 5000,
        -1,
        "-3",
        True,
        1.0,
        "1.0",
        " 1 ",
        "1\0",
        None,
        "many",
        [],
        {},
        10**30,
        1e308,
        "1e3",
    ):
        yield lie(f"count {str(value)[:8]!r} {type(value).__name__}", series(_00201209=value), "fetched")
    digits = (
        b'[{"0020000E":{"Value":["{uid}"]},"00080060":{"Value":["CR"]},"00201209":{"Value":[' + b"9" * 5000 + b"]}}]"
    )
    yield lie(
        "count of 5,000 digits",
        lambda liar, connection, query: say(connection, digits.replace(b"{uid}", liar.uids[1][1].encode())),
        "fetched",
    )
    yield lie("count larger than what comes", series(_00201209=3), "1 of 3 objects")
    for pad in ("\0", " ", "\0\0  ", "\n"):
        yield lie(
            f"series UID padded with {pad!r}",
            lambda liar, connection, query, p=pad: say(
                connection, rows([liar.series(liar.uids[1], **{"0020000E": liar.uids[1][1] + p})])
            ),
            "fetched",
        )
    yield lie(
        "a series twice",
        lambda liar, connection, query: say(connection, rows([liar.series(liar.uids[1])] * 2)),
        "fetched",
    )
    yield lie("modality in small letters, padded", series(_00080060="cr "), "fetched")
    yield lie("modality not said", series(_00080060=""), "fetched")
    yield lie(
        "tags in small letters",
        lambda liar, connection, query: say(
            connection, rows([liar.series(liar.uids[1])]).replace(b"0020000E", b"0020000e")
        ),
        "fetched",
    )
    yield lie(
        "JSON with a mark of its order",
        lambda liar, connection, query: say(connection, b"\xef\xbb\xbf" + rows([liar.series(liar.uids[1])])),
        "fetched",
    )
    yield lie(
        "letters of another set",
        lambda liar, connection, query: say(
            connection, rows([liar.series(liar.uids[1], x="M\xfcller")]).replace(b"\\u00fc", b"\xfc")
        ),
        "fetched",
    )
    yield lie("includefield refused", refuses("includefield"), "fetched")
    yield lie("limit of series refused", refuses("limit|offset"), "fetched")


def _studies() -> Iterator[tuple[str, Lie]]:
    def lie(name: str, how: Answer, outcome: str, slow: bool = False, **wanted: Any) -> tuple[str, Lie]:
        return name, Lie("studies", how, outcome, slow, wanted)

    yield lie("pages end", pages(lambda liar, at, most: list(range(4))[at : at + most]), "fetched", page=2)
    yield lie(
        "a page of repeated studies",
        pages(lambda liar, at, most: {0: [0, 1], 2: [0, 1], 4: [2, 3]}.get(at, [])),
        "nothing new",
        page=2,
    )
    yield lie(
        "an empty page in the middle",
        pages(lambda liar, at, most: {0: [0, 1], 2: [], 4: [2, 3]}.get(at, [])),
        "nothing new",
        page=2,
    )
    yield lie(
        "one study in two pages",
        pages(lambda liar, at, most: {0: [0, 1], 2: [1, 2], 4: [3]}.get(at, [])),
        "fetched",
        page=2,
    )
    yield lie("the same page for ever", pages(lambda liar, at, most: list(range(4))), "no further pages", page=4)
    yield lie("limit ignored", pages(lambda liar, at, most: list(range(4))), "fetched", page=2)
    yield lie("limit capped", pages(lambda liar, at, most: list(range(4))[at : at + 1]), "fetched", page=100)
    yield lie("pages without end", endless, "more than 20 pages", page=2)
    yield lie("more than is shown", more_than_shown, "more than it shows", page=2)
    yield lie("404 behind the last page", no_empty_pages, "fetched", page=100)
    yield lie("404 in place of a page", no_empty_pages, "page 2 of a search", page=4)
    yield lie("the second page fails", second_page_fails, "page 2 of a search", page=4)
    yield lie("open range of days refused", refuses(r"StudyDate=\d*-$|StudyDate=-"), "fetched", since="2019-01-01")
    yield lie("days refused", refuses("StudyDate"), "fetched", since="2019-01-01", until="2021-01-01")
    yield lie("days ignored", ignores_days, "fetched", since="2019-01-01")
    yield lie("modality refused", refuses("ModalitiesInStudy"), "fetched", modality="CR")
    yield lie(
        "days and modality refused",
        refuses("ModalitiesInStudy|StudyDate"),
        "fetched",
        modality="CR",
        until="2021-01-01",
    )
    yield lie("limit refused", refuses("limit|offset"), "fetched")
    yield lie(
        "study UIDs padded",
        lambda liar, connection, query: say(
            connection, rows([{"0020000D": one + "\0"} for one, _, _ in liar.uids][int(query["offset"]) :])
        ),
        "fetched",
    )
    bad = [{"0020000D": "../x"}, {"x": "y"}]
    yield lie(
        "studies without a UID among others",
        lambda liar, connection, query: say(
            connection, rows([*bad, *liar.studies()] if query["offset"] == "0" else [])
        ),
        "without a UID",
    )


LIES = {name: lie for group in (_objects, _series, _studies) for name, lie in group()}
