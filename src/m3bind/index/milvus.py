"""The index in Milvus: the same interface, one file (Milvus Lite) or a server or cluster by another URI.

* `MilvusIndex`.

A collection holds the rows, the text columns (those with conditions have fields of their own, others are dynamic
fields) and the place of each item in the order of insertion; a second one, NAME_about, holds the index's settings and
metadata. Milvus finds the candidates and applies the conditions; the scores are computed here, from the rows it
returns, by the kernel of the embedded index: so both return the same hits and scores.

Index type: FLAT in Milvus Lite, HNSW on a server (`exact=True` sets the widest search that Milvus allows). Durability,
hashes and concurrent readers are Milvus' own; Milvus Lite allows one process at a time to open its file.

Shapes: q queries, n items, d dimension, k hits.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from m3bind.core.columns import text_columns
from m3bind.core.files import sha256_text
from m3bind.errors import ConfigError, SpaceError, UnknownNameError
from m3bind.index import base, flat
from m3bind.index.base import AFTER, KEY, NAMED, NEEDED, SEVERAL, Array, Index, SearchResult, Where
from m3bind.index.milvus_client import connect, parse_uri
from m3bind.privacy import redact_path

FIELDS = ("modality", "path", "label", "patient", "date")
LABELS, ORDER, VECTOR = "m3bind_labels", "m3bind_order", "m3bind_vector"  # fields that m3bind adds
WIDEST = 16_384  # maximum hits and search width of Milvus
BYTES = 1 << 25  # sent or received at once; the limit of Milvus is 64 MB
LINKS, BUILD_EF, EF = 32, 200, 128  # of HNSW on a server
SPARE = 16  # candidates beyond k
LONGEST = 4096  # bytes of a text
PIECE = 60_000  # bytes of a metadata value per line; the limit of Milvus is 65,535


class MilvusIndex(Index):
    """See `Index`."""

    def __init__(self, uri: str, client: Any, name: str, writable: bool) -> None:
        self.uri, self._client, self._name, self._writable = uri, client, name, writable
        about = _joined(self._about())
        self.dim, self.fingerprint = int(about["dim"]), str(about["fingerprint"])
        self.gap_corrected = bool(about["gap_corrected"])
        self._next = int(about["next"])  # place of the next item
        self._columns: list[str] = about["columns"]
        self._notes: dict[str, Any] = about["notes"]

    @property
    def mark(self) -> str:
        """Changes whenever a process upserts or deletes items, or changes the metadata."""
        lines = sorted((str(line["key"]), str(line["value"])) for line in self._about())
        return sha256_text(str(len(self)), *chain.from_iterable(lines))

    def refresh(self) -> None:
        """Read columns and metadata that other processes added."""
        about = _joined(self._about())
        self._columns, self._notes = about["columns"], about["notes"]

    @classmethod
    def create(cls, uri: str, dim: int, fingerprint: str, gap_corrected: bool) -> Self:
        """See `create_index`."""
        client, name, local = connect(uri)
        from pymilvus import DataType

        if client.has_collection(name):
            client.close()
            raise ConfigError(f"{uri} exists already; open it to add to it, or choose another collection")
        schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field(KEY, DataType.VARCHAR, is_primary=True, max_length=LONGEST)
        schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dim)
        schema.add_field(ORDER, DataType.INT64)
        for field in FIELDS:
            schema.add_field(field, DataType.VARCHAR, max_length=LONGEST)
        schema.add_field(LABELS, DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=256, max_length=LONGEST)
        index = client.prepare_index_params()
        if local:
            index.add_index(VECTOR, index_type="FLAT", metric_type="IP")
        else:
            settings = {"M": LINKS, "efConstruction": BUILD_EF}
            index.add_index(VECTOR, index_type="HNSW", metric_type="IP", params=settings)
        about = client.create_schema(auto_id=False)
        about.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
        about.add_field("value", DataType.VARCHAR, max_length=65_535)
        about.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=2)  # Milvus requires one in every collection
        plain = client.prepare_index_params()
        plain.add_index(VECTOR, index_type="FLAT", metric_type="IP")
        client.create_collection(_about(name), schema=about, index_params=plain, consistency_level="Strong")
        values = {"dim": dim, "fingerprint": fingerprint, "gap_corrected": gap_corrected}
        _write(client, name, {**values, "next": 0, "columns": list(NEEDED), "notes": {}})
        client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
        return cls(uri, client, name, writable=True)

    @classmethod
    def open(cls, uri: str, writable: bool) -> Self:
        """See `open_index`."""
        client, name, _ = connect(uri)
        if not client.has_collection(name):
            client.close()
            raise SpaceError(f"{uri}: no index; build one with: m3bind index ENCODED --out {uri}")
        if not client.has_collection(_about(name)):
            client.close()
            raise SpaceError(f"{uri}: a collection that m3bind did not create; choose another name")
        for collection in (name, _about(name)):
            client.load_collection(collection)
        return cls(uri, client, name, writable)

    @classmethod
    def exists(cls, uri: str) -> bool:
        """Whether the collection is there."""
        target, _, local = parse_uri(uri)
        if local and not Path(target).exists():
            return False
        client, name, _ = connect(uri)
        try:
            return bool(client.has_collection(name))
        finally:
            client.close()

    def __len__(self) -> int:
        return int(self._client.query(self._name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    @property
    def columns(self) -> list[str]:
        """See `Index`."""
        return list(self._columns)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """See `Index`."""
        return self._notes

    def counts(self, column: str = "modality", where: Where | None = None) -> dict[str, int]:
        """See `Index`."""
        if column not in self._columns:
            raise UnknownNameError("column of this index", column, self._columns)
        counts = Counter(str(line.get(column, "")) for line in self._lines(condition(where or Where()), [column]))
        return dict(sorted(counts.items()))

    # -- changing ------------------------------------------------------------------------------------------------------

    def upsert(self, vectors: Array, items: pd.DataFrame) -> None:
        """See `Index`."""
        self._need_lock()
        rows, table = base.check_rows(vectors, items, self.dim)
        _check_lengths(table)
        self._columns = list(dict.fromkeys([*self._columns, *table.columns]))
        first, self._next = self._next, self._next + len(rows)
        _write(self._client, self._name, {"columns": self._columns, "next": self._next})  # a place is never reused
        empty = dict.fromkeys((*FIELDS, *self._columns), "")  # omitted fields would remain unchanged
        block = max(1, BYTES // (4 * self.dim + 4 * LONGEST))
        lines = table.to_dict("records")
        for start in range(0, len(rows), block):
            values: list[Any] = []
            for number, (line, row) in enumerate(zip(lines[start : start + block], rows[start:]), first + start):
                values.append({**empty, **line, LABELS: _labels(line), ORDER: number, VECTOR: row})
            self._client.upsert(self._name, values)

    def delete(self, ids: Sequence[str]) -> int:
        """See `Index`."""
        self._need_lock()
        known = [str(line[KEY]) for line in self._by_ids(list(dict.fromkeys(ids)), [KEY])]
        for start in range(0, len(known), WIDEST):
            self._client.delete(self._name, filter=_among(KEY, known[start : start + WIDEST]))
        return len(known)

    def set_metadata(self, key: str, value: Any) -> None:
        """See `Index`."""
        self._need_lock()
        notes = {name: entry for name, entry in {**self._notes, key: value}.items() if entry is not None}
        _write(self._client, self._name, {"notes": notes})
        self._notes = notes

    def commit(self) -> None:
        """See `Index`: flushes the collection; Milvus merges its files."""
        self._need_lock()
        self._client.flush(self._name)

    def _need_lock(self) -> None:
        if not self._writable:
            raise ConfigError(f"{self.uri} is open for reading; open it with writable=True")

    # -- reading -------------------------------------------------------------------------------------------------------

    def search(
        self, queries: Array, k: int = 10, where: Where | None = None, exact: bool | None = None
    ) -> SearchResult:
        """See `Index`."""
        rows = base.check_queries(queries, k, self.dim)
        where = where or Where()
        if self._next:
            where.check(self._columns)
        wide = min(k + SPARE, WIDEST)
        if k > WIDEST:
            raise ConfigError(f"k is {k}; Milvus returns at most {WIDEST} hits")
        settings = {"metric_type": "IP", "params": {"ef": WIDEST if exact else max(EF, 2 * wide)}}
        block = max(1, BYTES // (wide * (4 * self.dim + 64)))
        scores, ids = np.full((len(rows), k), np.nan, np.float32), []
        for start in range(0, len(rows), block):
            answers = self._client.search(
                self._name,
                list(rows[start : start + block]),
                limit=wide,
                filter=condition(where),
                search_params=settings,
                output_fields=[ORDER, VECTOR],
            )
            for number, answer in enumerate(answers, start):
                best, names = _ranked(rows[number], answer, k)
                scores[number, : len(best)] = best
                ids.append(names)
        return SearchResult(scores[:, : max(map(len, ids), default=0)], ids)

    def items(self, ids: Sequence[str]) -> pd.DataFrame:
        """See `Index`."""
        lines = self._ordered(ids, self._columns)
        return text_columns({name: [str(line.get(name, "")) for line in lines] for name in self._columns})

    def vectors(self, ids: Sequence[str]) -> Array:
        """See `Index`."""
        lines = self._ordered(ids, [VECTOR])
        return np.array([line[VECTOR] for line in lines], np.float32).reshape(-1, self.dim)

    def sample(self, n: int, where: Where | None = None, seed: int = 0) -> tuple[list[str], Array]:
        """See `Index`."""
        where = where or Where()
        if self._next:
            where.check(self._columns)
        lines = sorted(self._lines(condition(where), [KEY, ORDER]), key=lambda line: line[ORDER])
        chosen = np.sort(np.random.default_rng(seed).choice(len(lines), min(n, len(lines)), replace=False))
        ids = [str(lines[place][KEY]) for place in chosen]
        return ids, self.vectors(ids)

    def close(self) -> None:
        """See `Index`."""
        self._client.close()

    def _about(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._client.query(
            _about(self._name), filter='key != ""', output_fields=["key", "value"]
        )
        return found

    def _lines(self, filter: str, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Fields of all matching items."""
        iterator = self._client.query_iterator(self._name, batch_size=1024, filter=filter, output_fields=list(fields))
        while lines := iterator.next():
            yield from lines
        iterator.close()

    def _by_ids(self, ids: Sequence[str], fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Fields of the existing items, in any order."""
        block = max(1, min(WIDEST, BYTES // (4 * self.dim + 4 * LONGEST)))
        for start in range(0, len(ids), block):
            some = _among(KEY, ids[start : start + block])  # ids= of Milvus fails at quotes and backslashes
            yield from self._client.query(self._name, filter=some, output_fields=[KEY, *fields])

    def _ordered(self, ids: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Fields of items, in the order of `ids`."""
        found = {str(line[KEY]): line for line in self._by_ids(list(dict.fromkeys(ids)), fields)}
        for name in ids:
            if name not in found:
                raise UnknownNameError("id in this index", redact_path(name), [])
        return [found[name] for name in ids]


def condition(where: Where) -> str:
    """A `Where` as a Milvus expression."""
    parts = []
    for name in NAMED:
        values = getattr(where, name)
        if values is not None:
            parts.append(f"array_contains_any({LABELS}, {_texts(values)})" if name == "label" else _among(name, values))
    if where.since is not None or where.until is not None:
        parts.append('date != ""')
    if where.since is not None:
        parts.append(f"date >= {json.dumps(where.since)}")
    if where.until is not None:
        parts.append(f"date < {json.dumps(where.until + AFTER)}")
    if where.not_ids:
        parts.append(f"{KEY} not in {_texts(where.not_ids)}")
    return " and ".join(parts)


def _among(field: str, values: Sequence[str]) -> str:
    return f"{field} in {_texts(values)}"


def _texts(values: Sequence[str]) -> str:
    """Texts as a list of a Milvus expression."""
    return json.dumps(list(values), ensure_ascii=False)


def _check_lengths(table: pd.DataFrame) -> None:
    """Refuse texts that are too long for a field of Milvus.

    Raises:
        ConfigError: names the row and column.
    """
    for name in {KEY, *FIELDS} & set(table.columns):
        sizes = table[name].map(lambda text: len(text.encode()))
        if len(sizes) and sizes.max() > LONGEST:
            where = f"row {int(sizes.to_numpy().argmax())}, column {name!r}"
            raise ConfigError(f"{where}: {sizes.max()} bytes; an index in Milvus takes at most {LONGEST} a text")


def _labels(line: Mapping[Any, str]) -> list[str]:
    """The values that match a condition on the label: the whole text and its parts."""
    label = line.get("label", "")
    return list(dict.fromkeys([label, *label.split(SEVERAL)]))


def _ranked(query: Array, answer: Sequence[Any], k: int) -> tuple[Array, list[str]]:
    """True scores and ids of the k best candidates of one query."""
    if not answer:
        return np.empty(0, np.float32), []
    rows = np.array([hit["entity"][VECTOR] for hit in answer], np.float32)
    order = np.array([[hit["entity"][ORDER] for hit in answer]], np.int64)
    here = np.arange(len(answer))[None]
    scores = flat.rescore([rows], query[None], here)
    at = np.lexsort((order, -scores), axis=1)[0, :k]
    return scores[0, at], [str(answer[place]["id"]) for place in at]


def _about(name: str) -> str:
    return f"{name}_about"


def _write(client: Any, name: str, values: Mapping[str, Any]) -> None:
    """Store JSON values in the collection NAME_about, long ones in pieces: KEY/0 begins with their number."""
    lines = []
    for key, value in values.items():
        text = json.dumps(value)
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        pieces[0] = f"{len(pieces)}:{pieces[0]}"
        lines += [{"key": f"{key}/{n}", "value": piece, VECTOR: [1.0, 0.0]} for n, piece in enumerate(pieces)]
    client.upsert(_about(name), lines)


def _joined(lines: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The values that `_write` stored; leftover pieces of an earlier, longer value are ignored."""
    pieces = {line["key"]: line["value"] for line in lines}
    values = {}
    for key in {name.rpartition("/")[0] for name in pieces}:
        count, _, text = pieces[f"{key}/0"].partition(":")
        for number in range(1, int(count)):
            text += pieces[f"{key}/{number}"]
        values[key] = json.loads(text)
    return values
