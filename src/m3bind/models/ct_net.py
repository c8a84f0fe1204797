"""CT-Net (chest CT): a supervised classifier of whole volumes, without a text tower.

n volumes, k labels. A volume is 402 slices as 134 images of three channels.

    trunk       ResNet-18 on each image to 512 x 14 x 14, three 3-D convolutions over all of them, 7200 features
    head        Linear, ReLU, Linear, ReLU: 96 features, divided by their norm in `encode_image`
    classifier  Linear to k labels; sigmoid

The authors' volumes (RAD-ChestCT) run from the head down, m3bind's from the feet up: `preprocess` flips them. Rows
(to the back) and columns (to the patient's left) agree. Other volumes are first resampled to 0.8 mm as RAD-ChestCT was
(rachellea/ct-volume-preprocessing: cubic B-splines, whole numbers, limits -1000 and 1000).
Draelos et al. 2021, https://arxiv.org/abs/2002.04752.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.layers.preprocess import centred
from m3bind.models.layers.volumes import CT_RATE_LABELS, checked_spacing, volume_of
from m3bind.models.published import ImageOnly
from m3bind.models.weights.checkpoint import rename
from m3bind.models.weights.weight_files import read_state

SPACING = 0.8  # mm, all sides
SHAPE = (402, 420, 420)
IMAGES = SHAPE[0] // 3
HU = (-1000.0, 200.0)
STORED_HU = (-1000.0, 1000.0)  # limits of the authors' prepared volumes, which hold whole numbers
MEAN = 0.449
FEATURES = 16 * 18 * 5 * 5
TOGETHER = 6  # images per pass of the ResNet outside of training
_MANY = (
    "bandlike_or_linear bronchial_wall_thickening groundglass honeycombing reticulation tree_in_bud airspace_disease "
    "air_trapping aspiration atelectasis bronchiectasis bronchiolectasis bronchiolitis bronchitis emphysema hemothorax "
    "interstitial_lung_disease lung_resection mucous_plugging pleural_effusion pleural_thickening pneumonia "
    "pneumonitis pneumothorax pulmonary_edema septal_thickening tuberculosis cabg cardiomegaly coronary_artery_disease "
    "heart_failure heart_valve_replacement pacemaker_or_defib pericardial_effusion pericardial_thickening sternotomy "
    "arthritis atherosclerosis aneurysm breast_implant breast_surgery calcification cancer catheter_or_port cavitation "
    "clip congestion consolidation cyst debris deformity density dilation_or_ectasia distention fibrosis fracture "
    "granuloma hardware hernia infection infiltrate inflammation lesion lucency lymphadenopathy mass nodule "
    "nodulegr1cm opacity plaque postsurgical scarring scattered_calc scattered_nod secretion soft_tissue staple stent "
    "suture transplant chest_tube tracheal_tube gi_tube"
)
# by the number of outputs: columns of the authors' label files; CT-RATE (trained by the authors of CT-CLIP)
LABELS: Mapping[int, tuple[str, ...]] = {83: tuple(_MANY.split()), 18: CT_RATE_LABELS}


class Trunk(nn.Module):
    """(n, 134, 3, 420, 420) -> (n, 7200)."""

    def __init__(self) -> None:
        from torchvision.models import resnet18

        super().__init__()
        self.resnet = resnet18(weights=None)
        self.resnet.avgpool, self.resnet.fc = nn.Identity(), nn.Identity()
        self.reduce = nn.Sequential(  # the 134 images are channels, the 512 maps of each are the depth
            nn.Conv3d(IMAGES, 64, 3, stride=(3, 1, 1)),
            nn.ReLU(),
            nn.Conv3d(64, 32, 3, stride=(3, 1, 1)),
            nn.ReLU(),
            nn.Conv3d(32, 16, (3, 2, 2), stride=(3, 2, 2)),
            nn.ReLU(),
        )

    def forward(self, volumes: Tensor) -> Tensor:
        """One volume at a time, except in training, where normalisation may take its statistics over all.

        Raises:
            ConfigError: another shape.
        """
        if volumes.shape[1:] != (IMAGES, 3, *SHAPE[1:]):
            raise ConfigError(
                f"CT-Net takes volumes (n, {IMAGES}, 3, {SHAPE[1]}, {SHAPE[2]}), this batch is "
                f"{tuple(volumes.shape)}; prepare samples with the model's preprocess."
            )
        if self.training:
            maps = self.maps(volumes.flatten(0, 1)).view(len(volumes), IMAGES, 512, 14, 14)
            return self.reduce(maps).flatten(1)  # type: ignore[no-any-return]
        rows = [self.reduce(self.maps(volume)[None]).flatten(1) for volume in volumes]
        return torch.cat(rows) if rows else volumes.new_zeros(0, FEATURES)

    def maps(self, images: Tensor) -> Tensor:
        """(m, 3, 420, 420) -> (m, 512, 14, 14), few images at a time outside of training."""
        parts = torch.split(images, len(images) if self.training else TOGETHER)
        maps = [self.resnet(part.contiguous(memory_format=torch.channels_last)) for part in parts]
        return torch.cat(maps).view(-1, 512, 14, 14)


class CtNet(ImageOnly):
    """CT-Net as its authors defined it, with 83 or 18 outputs."""

    name = "ct_net"
    own_settings = ("outputs", "spacing")
    instead = "it was trained on labels alone. Take its probabilities or image features, or choose ct_clip for texts."
    migrations = (
        rename(r"^features\.0\.", "image_trunk.resnet.conv1."),
        rename(r"^features\.1\.", "image_trunk.resnet.bn1."),
        rename(r"^features\.4\.", "image_trunk.resnet.layer1."),
        rename(r"^features\.5\.", "image_trunk.resnet.layer2."),
        rename(r"^features\.6\.", "image_trunk.resnet.layer3."),
        rename(r"^features\.7\.", "image_trunk.resnet.layer4."),
        rename(r"^reducingconvs\.", "image_trunk.reduce."),
        rename(r"^classifier\.([03])\.", r"image_head.\1."),
        rename(r"^classifier\.6\.", "classifier.1."),
    )
    card = ModelCard(
        source="https://github.com/rachellea/ct-net-models (Draelos et al. 2021, arXiv:2002.04752)",
        revision="a2cb4ab",
        licence_code="MIT",
        licence_weights="none published",
        joint_dim=96,
        input="134x3x420x420 (402 slices of 0.8 mm, from the head down), -1000..200 HU to 0..1, minus 0.449",
        lora_image=("conv1", "conv2"),
        training_data=("RAD-ChestCT (83 outputs)", "CT-RATE (18 outputs)", "ImageNet (ResNet-18)"),
        notes=(
            "A supervised baseline without texts: `logits` and `probabilities` of volumes, columns named by `labels`. "
            "No weights are published; the authors' training script keeps them under 'params' of a file without "
            "ending. For 18 outputs the order of CT-RATE's label table is assumed."
        ),
    )

    def __init__(self, outputs: int = 83, spacing: Sequence[float] | None = None, frozen: Sequence[str] = ()) -> None:
        """Build with random weights.

        Args:
            outputs: 83 (labels of RAD-ChestCT) or 18 (of CT-RATE).
            spacing: voxel sides (D, H, W) in mm of volumes that state none; without it such volumes are refused.
            frozen: see `PublishedModel`.

        Raises:
            ConfigError: another number of outputs, or a `spacing` that is not three positive numbers.
        """
        super().__init__(frozen)
        if outputs not in LABELS:
            raise ConfigError(f"outputs={outputs!r} of ct_net is unknown; choose {' or '.join(map(str, LABELS))}.")
        self.outputs, self.spacing = outputs, checked_spacing(spacing, self.name)
        self.image_trunk = Trunk()
        self.image_head = nn.Sequential(
            nn.Linear(FEATURES, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, self.joint_dim), nn.ReLU()
        )
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(self.joint_dim, outputs))
        self._finish()

    # ---- labels

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the columns of `logits` and `probabilities`, in order."""
        return LABELS[self.outputs]

    def logits(self, images: Tensor, texts: Tensor | None = None) -> Tensor:
        """Preprocessed volumes (n, 134, 3, 420, 420) -> (n, k), one column per label.

        Raises:
            ConfigError: `texts` are given; the model has no text tower.
        """
        if texts is not None:
            self._refuse()
        return self.label_logits(self.image_features(images))

    def label_logits(self, features: Tensor) -> Tensor:
        """Output of `image_features` (n, 7200) -> (n, k), one column per label."""
        return self.classifier(self.project_image(features))  # type: ignore[no-any-return]

    def probabilities(self, images: Tensor) -> Tensor:
        """(n, 134, 3, 420, 420) -> (n, k) in 0..1, independent for each label."""
        return self.logits(images).sigmoid()

    # ---- settings and samples

    @classmethod
    def from_checkpoint(cls, path: Path | str, settings: Mapping[str, Any], variant: str = "") -> Self:
        """The model with the weights of a file; the default of `outputs` is their number in the file.

        Raises:
            CheckpointError: damaged, unsafe to read, or of another model.
        """
        if "outputs" not in settings and Path(path).exists():
            rows = [len(value) for key, value in read_state(path).items() if key.endswith("classifier.6.bias")]
            if len(rows) == 1 and rows[0] in LABELS:
                settings = {**settings, "outputs": rows[0]}
        return super().from_checkpoint(path, settings, variant)

    def preprocess(self, sample: Sample) -> Tensor:
        """(D, H, W) in HU -> (134, 3, 420, 420), from the head down.

        Raises:
            ConfigError: not a volume, or one without spacing while the setting `spacing` is None.
        """
        volume, spacing = volume_of(sample, self.spacing, self.name)
        volume = volume.flip(0)
        if not np.allclose(spacing, SPACING, rtol=1e-4):
            volume = resampled(volume, spacing).round_().clamp_(*STORED_HU)
        volume = centred(volume, SHAPE, float(volume.min()))
        volume = volume.clamp(*HU).sub_(HU[0]).div_(HU[1] - HU[0]).sub_(MEAN)
        return volume.view(IMAGES, 3, *SHAPE[1:])

    def levels(self) -> Tensor:
        """(1, 1201): whole HU, also of volumes that are resampled."""
        return torch.arange(HU[0], HU[1] + 1)[None].float().sub_(HU[0]).div_(HU[1] - HU[0]).sub_(MEAN)


def resampled(volume: Tensor, spacing: Sequence[float]) -> Tensor:
    """(D, H, W) at 0.8 mm instead of `spacing`, by cubic B-splines, as the authors' preparation of RAD-ChestCT."""
    depth, rows, columns = (_spline(count, side) for count, side in zip(volume.shape, spacing))
    planes = torch.stack([rows @ plane @ columns.T for plane in volume])
    return (depth @ planes.flatten(1)).view(-1, *planes.shape[1:])


def _spline(count: int, side: float) -> Tensor:
    """Resampling along an axis as a matrix (new, old): the splines of unit vectors; the first voxels coincide."""
    from scipy.ndimage import affine_transform

    size = max(1, round(count * (side / SPACING)))
    matrix = affine_transform(np.eye(count), [SPACING / side, 1.0], output_shape=(size, count), order=3, mode="mirror")
    return torch.from_numpy(matrix.astype(np.float32))
