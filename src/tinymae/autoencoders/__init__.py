"""The families of autoencoders beside the masked ViT, one room each; `base` says what all have in common."""
