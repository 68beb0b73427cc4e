"""GRIT-VQ: residual vector quantization with a radius surrogate and an integrated transform."""
