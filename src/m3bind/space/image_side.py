"""The image side of a modality: a batch of inputs through trunk, head and bridge, once.

* `image_side`: inputs -> unit rows and the distances of the trunk's features to those of the training data.

Shapes: n inputs, d dimension of the space.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from m3bind.models.base import DualEncoder
from m3bind.models.bridges import BaseBridge
from m3bind.space.unlike import UnlikeMeasure, measured

DISTANCES = 2  # columns after those of the unit row


def image_side(model: DualEncoder, bridge: BaseBridge, measure: UnlikeMeasure | None) -> Callable[[Tensor], Tensor]:
    """(n, ...) -> (n, d) unit rows, with a measure (n, d + 2): followed by `UnlikeMeasure.feature_distances`.

    The bridge and the measure compute in float32, whatever the precision of the tower.
    """

    finish = after_trunk(model, bridge, measure)
    return lambda batch: finish(model.image_features(batch))


def after_trunk(model: DualEncoder, bridge: BaseBridge, measure: UnlikeMeasure | None) -> Callable[[Tensor], Tensor]:
    """`image_side` of features of the trunk."""

    def encode(features: Tensor) -> Tensor:
        own = F.normalize(model.project_image(features), dim=-1)
        if own.dtype != torch.float32:
            own = F.normalize(own.float(), dim=-1)  # rounded rows are a little shorter or longer
        with torch.autocast(features.device.type, enabled=False):
            rows = bridge.image(own)
            if measure is None:
                return rows
            return torch.cat([rows, measure.feature_distances(measured(features, own))], dim=1)

    return encode
