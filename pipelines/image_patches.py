"""Compare quantizers, GRIT-VQ among them, inside a small image autoencoder on photographs.

    python pipelines/image_patches.py --out runs/image-patches

The script is an example of GRIT-VQ inside a model of your own. The two photographs that
scikit-learn ships are cut into patches, and the right quarter of each picture is held out. The same
convolutional autoencoder is trained with each quantizer. It is also trained without a quantizer
(`identity`), which gives the lowest error to expect. The script prints the reconstruction error and
the codebook usage on the held-out patches, and writes `results.parquet` and `reconstructions.png`.
The picture needs `pip install -e ".[notebooks]"`.

Shapes: B patches of a batch, N patches, D code dimensions.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from recgrit.progress import progress_bar
from recgrit.quantization import build_quantizer
from recgrit.quantization.diagnostics import diagnose_codes

PATCH, STRIDE = 32, 16
HELD_OUT = 0.25
METHODS = ("grit", "straight_through", "ema", "rotation", "identity")
SHOWN = 8


class PatchAutoencoder(nn.Module):
    """An autoencoder of patches ``[B, 3, 32, 32]``, with 8 x 8 latent vectors that are quantized.

    Args:
        method: Name of the quantizer.
        code_dim: Number of dimensions of a latent vector.
        codebook_size: Number of codes.
    """

    def __init__(self, method: str, *, code_dim: int, codebook_size: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(64, code_dim, 1),
        )
        self.quantizer = build_quantizer(method, code_dim, 1, codebook_size)
        self.decoder = nn.Sequential(
            nn.Conv2d(code_dim, 64, 3, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(32, 3, 4, stride=2, padding=1),
        )

    def encode_latent(self, patches: Tensor) -> Tensor:
        """Return one latent vector per place, ``[B, 64, D]``."""
        latent: Tensor = self.encoder(patches).flatten(2).transpose(1, 2)
        return latent

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstructions ``[B, 3, 32, 32]``, the quantizer's loss and codes ``[B, 64]``."""
        result = self.quantizer(self.encode_latent(patches))
        side = PATCH // 4
        grid = result.quantized.transpose(1, 2).reshape(len(patches), -1, side, side)
        return self.decoder(grid), result.loss, result.codes[..., 0]


def cut_patches() -> tuple[Tensor, Tensor]:
    """Return training and held-out patches, both ``[N, 3, 32, 32]`` with values in -1 to 1.

    Training patches and held-out patches never overlap.
    """
    train, held_out = [], []
    for image in load_sample_images().images:
        pixels = torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
        border = int(pixels.shape[2] * (1 - HELD_OUT))
        for part, patches, stride in (
            (pixels[:, :, :border], train, STRIDE),
            (pixels[:, :, border:], held_out, PATCH),
        ):
            grid = part.unfold(1, PATCH, stride).unfold(2, PATCH, stride)
            patches.append(grid.permute(1, 2, 0, 3, 4).reshape(-1, 3, PATCH, PATCH))
    return torch.cat(train), torch.cat(held_out)


def fit_autoencoder(
    method: str, patches: Tensor, *, steps: int, codebook_size: int, seed: int
) -> PatchAutoencoder:
    """Train one autoencoder. Its codes start from k-means on the untrained encoder's latents.

    Args:
        method: Name of the quantizer.
        patches: Training patches ``[N, 3, 32, 32]``.
        steps: Number of training steps.
        codebook_size: Number of codes.
        seed: Seed of weights, k-means, batches and dead-code resets.
    """
    torch.manual_seed(seed)
    model = PatchAutoencoder(method, code_dim=32, codebook_size=codebook_size)
    with torch.no_grad():
        model.quantizer.fit_init(model.encode_latent(patches[:512]).flatten(0, 1), seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(seed)
    model.train()
    with progress_bar(method, steps) as bar:
        for _ in range(steps):
            batch = patches[torch.randint(len(patches), (64,), generator=draw)]
            reconstruction, loss, _ = model(batch)
            error = F.mse_loss(reconstruction, batch)
            optimizer.zero_grad(set_to_none=True)
            (error + loss).backward()
            optimizer.step()
            schedule.step()
            model.quantizer.after_step(optimizer, generator=draw)
            bar.advance(note=f"error {error.item():.4f}")
    return model.eval()


@torch.no_grad()
def measure(
    model: PatchAutoencoder, patches: Tensor, codebook_size: int
) -> tuple[dict[str, float], Tensor]:
    """Return error, PSNR in decibels and use of the codes on patches, and the reconstructions."""
    reconstruction, _, codes = model(patches)
    error = F.mse_loss(reconstruction, patches).item()
    level = diagnose_codes(codes.reshape(-1, 1).numpy(), (codebook_size,)).levels[0]
    return {
        "error": error,
        "psnr": 10 * np.log10(4 / error),
        "codebook_usage": level.codebook_usage,
        "perplexity": level.perplexity,
    }, reconstruction


def draw_pictures(patches: Tensor, reconstructions: dict[str, Tensor], path: Path) -> None:
    """Draw some held-out patches and their reconstructions by each method, one row per method."""
    import matplotlib.pyplot as plt

    rows = {"original": patches, **reconstructions}
    # Patches of plain sky show no differences, so the patches come from the upper half by contrast.
    by_contrast = patches.flatten(1).std(dim=1).argsort()
    shown = by_contrast[torch.linspace(len(patches) // 2, len(patches) - 1, SHOWN).long()]
    figure, axes = plt.subplots(
        len(rows), SHOWN, figsize=(1.1 * SHOWN + 1.4, 1.15 * len(rows)), squeeze=False
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center")
        for axis, image in zip(line, images[shown], strict=True):
            axis.imshow((image.permute(1, 2, 0).clamp(-1, 1) + 1) / 2)
            axis.set_xticks([])
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_visible(False)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/image-patches"),
    steps: Annotated[int, typer.Option(help="Training steps per method.")] = 400,
    codebook_size: Annotated[int, typer.Option(help="Number of codes.")] = 512,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
) -> None:
    """Train every method and compare them on held-out patches."""
    train, held_out = cut_patches()
    rows, pictures = [], {}
    for seed in [int(seed) for seed in seeds.split(",")]:
        for method in METHODS:
            started = time.perf_counter()
            model = fit_autoencoder(
                method, train, steps=steps, codebook_size=codebook_size, seed=seed
            )
            seconds = time.perf_counter() - started
            values, reconstruction = measure(
                model, held_out, 1 if method == "identity" else codebook_size
            )
            rows.append({"method": method, "seed": seed, **values, "seconds": seconds})
            pictures.setdefault(method, reconstruction)
    out.mkdir(parents=True, exist_ok=True)
    results = pl.DataFrame(rows)
    results.write_parquet(out / "results.parquet")
    draw_pictures(held_out, pictures, out / "reconstructions.png")
    means = results.group_by("method", maintain_order=True).agg(
        pl.col("error").mean(),
        pl.col("error").std().alias("spread"),
        pl.col("psnr", "codebook_usage", "perplexity", "seconds").mean(),
    )
    table = Table("method", "error", "± over seeds", "PSNR", "usage", "perplexity", "seconds")
    for row in means.iter_rows():
        name, error, spread, psnr, usage, perplexity, seconds = row
        table.add_row(
            name,
            f"{error:.5f}",
            f"{spread or 0:.5f}",
            f"{psnr:.2f}",
            f"{usage:.0%}",
            f"{perplexity:.0f}",
            f"{seconds:.0f}",
        )
    Console().print(table)
    print(out / "reconstructions.png")


if __name__ == "__main__":
    typer.run(main)
