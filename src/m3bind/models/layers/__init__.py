"""Parts of models: networks, text towers, tokenizers, transforms of images and volumes, heads."""
