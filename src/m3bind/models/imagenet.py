"""ResNet-50 with ImageNet weights (any subject): what few-shot classification starts from without medical data.

n images. Features are the average pool, (n, 2048); there is no projection and no text tower. Preprocessing as the
weights were made with: shortest side 256, centre crop 224, ImageNet's mean and standard deviation; with `size` another
side (FLAIR compares at 512), taken whole.
He et al. 2016, https://arxiv.org/abs/1512.03385.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.layers.transforms import rgb_picture
from m3bind.models.published import ImageOnly, resnet50_trunk
from m3bind.models.weights.checkpoint import rename

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, RESIZED = 224, 256


class ImageNet(ImageOnly):
    """torchvision's ResNet-50."""

    name = "imagenet_resnet50"
    instead = "take its image features, or choose clip for texts."
    migrations = (rename(r"^(?!fc\.)", "image_trunk."),)
    ignored_keys = ("fc.*",)
    card = ModelCard(
        source="https://github.com/pytorch/vision (resnet50, He et al. 2016, arXiv:1512.03385)",
        licence_code="BSD-3-Clause",
        licence_weights="BSD-3-Clause (trained on ImageNet, research use)",
        joint_dim=2048,
        input="3x224x224, ImageNet mean/std",
        lora_image=("conv1", "conv2", "conv3"),
        training_data=("ImageNet",),
        notes="resnet50-0676ba61.pth or resnet50-11ad3fa6.pth of torchvision. A baseline for few-shot tables.",
        use="any (baseline)",
        verified="torchvision's own network and transform",
    )

    def __init__(self, size: int = SIZE, frozen: Sequence[str] = ()) -> None:
        """Build with random weights.

        Args:
            size: side in pixels; 224 as the weights were made, any other by plain resizing of the whole picture.
            frozen: see `PublishedModel`.

        Raises:
            ConfigError: `size` is below 32.
        """
        super().__init__(frozen=frozen)
        if size < 32:
            raise ConfigError(f"size={size} of imagenet_resnet50 is below 32 pixels; choose 224 or 512.")
        self.size = size
        self.image_trunk, self.image_head = resnet50_trunk(), nn.Identity()
        self._finish()

    def preprocess(self, sample: Sample) -> Tensor:
        """A picture -> (3, size, size).

        Raises:
            ConfigError: the sample is no image or volume.
        """
        from torchvision.transforms import functional as transforms

        picture = rgb_picture(sample)
        if self.size == SIZE:
            picture = transforms.center_crop(transforms.resize(picture, [RESIZED]), [SIZE, SIZE])
        else:
            picture = transforms.resize(picture, [self.size, self.size])
        made: Tensor = transforms.normalize(transforms.to_tensor(picture), list(MEAN), list(STD))
        return made

    def settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return super().settings() | {"size": self.size}
