"""Search along a concept: "more like this, as to normal or abnormal".

* `ConceptAxis`: the direction between two opposite wordings, and the change it makes to queries.

With unit text embeddings t_0, t_1 of the wordings, the axis is a = (t_1 - t_0) / |t_1 - t_0|. A query q with the usual
embedding μ of its kind becomes

    q' = q + w (a·(q - μ)) a,  normalised;    so an item x scores  q·x + w (a·(q - μ)) (a·x),  up to a factor

Items on the query's side of the axis rise, and the others fall; what else the query shows still orders those alike on
the axis. μ is the mean of the index's items of the query's modality, and for a text the mean of both wordings. Only the
query changes, so every index searches as before. `WEIGHT` was chosen on valid data (docs/search.md).

Shapes: p parts of a query, d dimension of the space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m3bind.errors import ConfigError
from m3bind.index.base import Array
from m3bind.search.query import Query

WEIGHT = 8.0  # w
ALIKE = 1e-3  # minimum distance of the two text embeddings


@dataclass(frozen=True)
class ConceptAxis:
    """The axis (d,), and the usual embeddings (d,) of texts and of each modality's items."""

    direction: Array
    middle: Array
    means: Mapping[str, Array]

    @classmethod
    def between(cls, texts: Array, reference: Mapping[str, Array]) -> "ConceptAxis":
        """The axis from the first to the second of two text embeddings (2, d).

        `reference`: modality -> items (r, d) of the index.

        Raises:
            ConfigError: both texts have the same embedding.
        """
        difference = texts[1].astype(np.float64) - texts[0]
        length = float(np.linalg.norm(difference))
        if length < ALIKE:
            raise ConfigError("the two wordings of an axis mean the same; give opposites, e.g. normal and abnormal")
        means = {name: rows.mean(axis=0) for name, rows in reference.items() if len(rows)}
        return cls(difference / length, texts.mean(axis=0), means)

    def combine(self, query: Query, rows: Array, modalities: Sequence[str]) -> Array:
        """The unit vector (d,) of a query along the axis, from the unit vectors (p, d) of its parts.

        `modalities`: of each part, "" for a text. Errors: `Query.combine`.
        """
        plain = query.combine(rows).astype(np.float64)
        weights = np.array([part.weight for part in query.parts])
        usual = np.stack([self.means.get(name, self.middle) for name in modalities])
        position = weights @ ((rows - usual) @ self.direction) / np.linalg.norm(weights @ rows)
        turned = plain + WEIGHT * position * self.direction
        return np.asarray(turned / np.linalg.norm(turned), np.float32)
