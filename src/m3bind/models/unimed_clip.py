"""UniMed-CLIP (X-ray, CT, MRI, ultrasound, pathology, retina): CLIP's ViT-B/16 with quick_gelu and BiomedBERT.

The image tower is `clip`'s, the text tower `biomedclip`'s; BERT and the text head have plain GELU. Khattak et al. 2024,
https://arxiv.org/abs/2412.10372.
"""

from torch import nn

from m3bind.models.base import ModelCard
from m3bind.models.biomedclip import BiomedBertModel
from m3bind.models.clip import ClipImageTrunk
from m3bind.models.weights.checkpoint import rename
from m3bind.models.weights.clip_keys import CLIP_PARTS, huggingface_keys


class UniMedClip(BiomedBertModel):
    """UniMed-CLIP ViT-B/16 as its authors published it."""

    name = "unimed_clip_b16"
    migrations = (
        huggingface_keys,
        *CLIP_PARTS,
        rename(r"^text_encoder\.transformer\.", "text_trunk.bert."),
        rename(r"^text_encoder\.proj\.", "text_head."),
    )
    card = ModelCard(
        source="https://github.com/mbzuai-oryx/UniMed-CLIP (Khattak et al. 2024, arXiv:2412.10372)",
        revision="6f09177",
        licence_code="CC BY-NC 4.0",
        licence_weights="CC BY-NC 4.0",
        joint_dim=512,
        input="3x224x224: shortest side 224 bicubic, centre crop, CLIP mean and std",
        lora_text=("query", "value"),
        lora_image=("q_proj", "v_proj"),
        training_data=(
            "UniMed: CheXpert, MIMIC-CXR, OpenI, ChestX-ray8, RadImageNet, ROCOv2, PMC-OA, LLaVA-Med, Quilt-1M",
            "35 retina sets (MM-Retinal, FLAIR's assembly with ODIR-5K and others)",
            "MetaCLIP 400M (image tower), PubMed abstracts (BiomedBERT)",
        ),
        notes="unimed_clip_vit_b16.pt. The ViT-L/14 models of the same authors are not offered.",
    )

    def _image_parts(self) -> tuple[nn.Module, nn.Module]:
        return ClipImageTrunk(16, quick_gelu=True), nn.Linear(768, self.joint_dim, bias=False)
