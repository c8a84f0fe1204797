"""Multipart bodies: the sent content arrives, however it is split on the way; anything else is refused."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from m3bind.serve.errors import Refusal
from m3bind.serve.multipart import receive

KIND = "multipart/form-data; boundary=edge"
DATA = st.binary(max_size=60) | st.sampled_from([b"\r\n--edge", b"--edge--", b"\r\n\r\n", b"\r", b"\r\n--edg"])


def body_of(files, fields):
    head = b'--edge\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    parts = [head % (b"file", b'; filename="%s"' % name.encode(), data) for name, data in files]
    parts += [head % (name.encode(), b"", value.encode()) for name, value in fields.items()]
    return b"".join(parts) + b"--edge--\r\n"


def received(body, cuts, most=10):
    async def pieces():
        for start, stop in zip([0, *cuts], [*cuts, len(body)]):
            yield body[start:stop]

    with tempfile.TemporaryDirectory() as folder:
        form = asyncio.run(receive(KIND, pieces(), Path(folder), most))
        assert all(path.parent == Path(folder) for path in form.files)
        return [(path.name, path.read_bytes()) for path in form.files], form.fields


@st.composite
def sent(draw):
    names = st.text("abcXYZ019._-", min_size=1, max_size=12)
    files = draw(st.lists(st.tuples(names, DATA), min_size=1, max_size=4))
    fields = draw(st.dictionaries(st.sampled_from(["modality", "note"]), st.text("abc ", max_size=20), max_size=2))
    body = body_of(files, fields)
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=12)))
    return files, fields, body, cuts


def holds_the_edge(files):
    return any(b"\r\n--edge" in b"\r\n" + data + b"\r\n" for _, data in files)


@settings(max_examples=150, deadline=None)
@given(sent())
def test_what_was_sent_arrives_however_it_was_cut(case):
    files, fields, body, cuts = case
    assume(not holds_the_edge(files))
    found, told = received(body, cuts)
    assert [data for _, data in found] == [data for _, data in files] and told == fields
    assert len({name for name, _ in found}) == len(found)
    for (name, _), (kept, _) in zip(files, found):
        assert kept.endswith(name.lstrip(".-_") or "file")


@settings(max_examples=150, deadline=None)
@given(sent(), st.data())
def test_what_was_cut_short_or_changed_is_refused_or_read_and_nothing_else(case, data):
    _, _, body, cuts = case
    short = body[: data.draw(st.integers(0, len(body) - 5))]
    with pytest.raises(Refusal) as refused:
        received(short, [cut for cut in cuts if cut <= len(short)])
    assert refused.value.status in (400, 415)
    at = data.draw(st.integers(0, len(body) - 1))
    changed = body[:at] + bytes([data.draw(st.integers(0, 255))]) + body[at + 1 :]
    try:
        received(changed, cuts)
    except Refusal as refusal:
        assert refusal.status in (400, 413, 415)


def test_a_wfdb_header_still_finds_its_signals():
    found, _ = received(body_of([("rec_01.hea", b"rec_01 12"), ("rec_01.dat", b"x")], {}), [])
    assert [name for name, _ in found] == ["rec_01.hea", "rec_01.dat"]
