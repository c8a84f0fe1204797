"""Naive search: an ordered dictionary of rows and metadata, cosines one by one."""

import numpy as np


class NaiveIndex:
    """id -> (row, metadata), in the order of insertion; a replaced item moves to the end."""

    def __init__(self):
        self.kept = {}

    def upsert(self, vectors, items):
        for row, line in zip(vectors, items.to_dict("records")):
            self.kept.pop(line["id"], None)
            self.kept[line["id"]] = (np.array(row), line)

    def delete(self, ids):
        return sum(self.kept.pop(name, None) is not None for name in set(ids))

    def search(self, query, k, where=None):
        """(id, cosine) of the k best, best first, equal ones in their order."""
        found = [
            (name, float(np.dot(row.astype(np.float64), query.astype(np.float64))))
            for name, (row, line) in self.kept.items()
            if where is None or fits(where, line)
        ]
        return sorted(found, key=lambda hit: -hit[1])[:k]


def fits(where, line):
    """Whether one item fits a condition."""
    date = line.get("date", "")
    return (
        (where.modality is None or line["modality"] in where.modality)
        and (where.patient is None or line.get("patient", "") in where.patient)
        and (
            where.label is None
            or any(v == line.get("label", "") for v in where.label)
            or any(v in line.get("label", "").split("|") for v in where.label)
        )
        and (where.since is None or (date != "" and date >= where.since))
        and (where.until is None or (date != "" and date[: len(where.until)] <= where.until))
        and line["id"] not in where.not_ids
    )
