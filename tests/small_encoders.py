"""Write folders of small encoders with random weights, in the layout of published models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path


def write_text_encoder(folder: Path, texts: Sequence[str]) -> Path:
    """Write a BERT whose vocabulary contains the words of the texts."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    # More words are needed, because components need more tokens than dimensions.
    words += [f"other{number}" for number in range(40)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_picture_encoder(folder: Path) -> Path:
    """Write a CLIP for pictures of 32 x 32 pixels, in the layout of clip-ViT-B-32."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    place = folder / "0_CLIPModel"
    place.mkdir(parents=True)
    tokens = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>"]
    (place / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(vocab=str(place / "vocab.json"), merges=str(place / "merges.txt"))
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pictures, tokenizer).save_pretrained(place)
    torch.manual_seed(0)
    narrow = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={**narrow, "vocab_size": len(tokens), "max_position_embeddings": 8},
        vision_config={**narrow, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(place)
    module = "sentence_transformers.models.CLIPModel"
    modules = [{"idx": 0, "name": "0", "path": place.name, "type": module}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder
