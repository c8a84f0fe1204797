"""Parts that models are made of: networks, text towers, tokenizers, transforms of images and volumes, heads."""
