"""ResNet-50 with ImageNet weights (any subject): the baseline of few-shot classification without medical data.

n images. Features are the average pool, (n, 2048); there is no projection and no text tower. Preprocessing as the
weights were trained with: shortest side 256, centre crop 224, ImageNet's mean and standard deviation; another `size`
(FLAIR compares at 512) resizes the whole image.
He et al. 2016, https://arxiv.org/abs/1512.03385.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.layers.transforms import IMAGENET_MEAN, IMAGENET_STD, normalized
from m3bind.models.published import ImageOnly, resnet50_trunk
from m3bind.models.weights.checkpoint import rename

SIZE, RESIZED = 224, 256


class ImageNet(ImageOnly):
    """torchvision's ResNet-50."""

    name = "imagenet_resnet50"
    own_settings = ("size",)
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
            size: side in pixels; 224 as the weights were trained, any other by resizing the whole image.
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
        """An image -> (3, size, size).

        Raises:
            ConfigError: the sample is not an image or volume.
        """
        from torchvision.transforms import functional as transforms

        image = rgb_image(sample)
        if self.size == SIZE:
            image = transforms.center_crop(transforms.resize(image, [RESIZED]), [SIZE, SIZE])
        else:
            image = transforms.resize(image, [self.size, self.size])
        return normalized(image, IMAGENET_MEAN, IMAGENET_STD)
