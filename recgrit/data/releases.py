"""The published data sets: their sizes, addresses and terms of use.

Sizes are those that the publishers state. ``verified`` names the files with which reading was
tested: an official file, or small files written in the publisher's format.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
MCAULEY = "https://mcauleylab.ucsd.edu/public_datasets/data"

MOVIELENS_TERMS = (
    "MovieLens is for research use and must not be redistributed without permission of GroupLens; "
    "cite F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS "
    "5(4), 2015."
)
FORMAT_ONLY = "small files as published"


@dataclass(frozen=True)
class Release:
    """A published data set, or a family of data sets with one per category.

    Args:
        source: Name for ``data.source``, in which ``<Category>`` stands for a category.
        users: Number of users. A dash if it differs by category.
        items: Number of items. A dash if it differs by category.
        interactions: Number of interactions, of all categories together.
        megabytes: Size of the download. None if it differs by category.
        terms: Licence, and the publication to cite.
        verified: Files with which reading was tested.
        addresses: Addresses of the files, in which ``{}`` stands for the category.
        publishes_md5: Whether the publisher provides the MD5 checksum of each file at
            ``ADDRESS.md5``.
    """

    source: str
    users: str
    items: str
    interactions: str
    megabytes: float | None
    terms: str
    verified: str
    addresses: tuple[str, ...]
    publishes_md5: bool = False

    @property
    def family(self) -> str:
        """Name of the source without the category."""
        return self.source.partition("/")[0]


def _movielens(
    name: str, users: str, items: str, ratings: str, megabytes: float, verified: str = FORMAT_ONLY
) -> Release:
    return Release(
        source=f"movielens-{name}",
        users=users,
        items=items,
        interactions=ratings,
        megabytes=megabytes,
        terms=MOVIELENS_TERMS,
        verified=verified,
        addresses=(f"{GROUPLENS}/ml-{name}.zip",),
        publishes_md5=True,
    )


RELEASES: tuple[Release, ...] = (
    _movielens("100k", "943", "1,682", "100,000", 5, "the copy in RecBole"),
    _movielens("1m", "6,040", "3,706", "1,000,209", 6),
    _movielens("10m", "69,878", "10,677", "10,000,054", 63),
    _movielens("20m", "138,493", "26,744", "20,000,263", 190),
    _movielens("25m", "162,541", "59,047", "25,000,095", 250),
    _movielens("32m", "200,948", "84,432", "32,000,204", 239),
    _movielens("latest", "331,000", "83,000", "33.8 million", 335),
    _movielens("latest-small", "610", "9,724", "100,836", 1, "the file of 2018-09"),
    Release(
        source="amazon2014/<Category>",
        users="–",
        items="–",
        interactions="142.8 million",
        megabytes=None,
        terms="Research use; cite R. He and J. McAuley (WWW 2016), J. McAuley et al. (SIGIR 2015).",
        verified="Beauty, Sports as rebuilt",
        addresses=(f"{SNAP}/reviews_{{}}_5.json.gz", f"{SNAP}/meta_{{}}.json.gz"),
    ),
    Release(
        source="amazon2018/<Category>",
        users="–",
        items="–",
        interactions="233 million",
        megabytes=None,
        terms="Research use; cite J. Ni, J. Li and J. McAuley (EMNLP 2019).",
        verified="Gift_Cards as published",
        addresses=(
            f"{MCAULEY}/amazon_v2/categoryFilesSmall/{{}}_5.json.gz",
            f"{MCAULEY}/amazon_v2/metaFiles2/meta_{{}}.json.gz",
        ),
    ),
    Release(
        source="amazon2023/<Category>",
        users="–",
        items="–",
        interactions="571 million",
        megabytes=None,
        terms="Research use; cite Y. Hou et al., arXiv 2403.03952 (2024).",
        verified=FORMAT_ONLY,
        addresses=(
            f"{MCAULEY}/amazon_2023/benchmark/5core/last_out/{{}}.train.csv.gz",
            f"{MCAULEY}/amazon_2023/benchmark/5core/last_out/{{}}.valid.csv.gz",
            f"{MCAULEY}/amazon_2023/benchmark/5core/last_out/{{}}.test.csv.gz",
            f"{MCAULEY}/amazon_2023/raw/meta_categories/meta_{{}}.jsonl.gz",
        ),
    ),
)


def find_release(source: str) -> Release | None:
    """Return the release that a source name stands for, or None for a user's own files."""
    family, _, category = source.partition("/")
    for release in RELEASES:
        if release.source == source or (category and release.family == family):
            return release
    return None
