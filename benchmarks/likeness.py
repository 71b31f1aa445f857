"""How like real features the synthetic vectors are, as far as nearest-neighbor search feels it.

`python -m benchmarks.likeness FOLDER... --weights FILE [--model resnet50] [--input-size 224]
[--count 10000]` from the repository's root. The folders hold pictures; their vectors are set
beside as many synthetic ones of as many dimensions. What is measured: benchmarks/geometry.py.
"""

from __future__ import annotations

import argparse
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import announce, draw, report
from benchmarks.results import Chart
from benchmarks.vectors import clustered
from lookalike.bootstrap import build_decoder, build_encoders
from lookalike.config import load_settings
from lookalike.cores import available_cores
from lookalike.evaluation.datasets import open_dataset
from lookalike.evaluation.extraction import extract_vectors


def main() -> None:
    """Prints both figures of everything that is measured, and keeps charts."""
    options = parse()
    announce(f"Synthetic vectors beside those of {options.model}")
    real = features(options)
    made = np.concatenate(list(clustered(*real.shape, seed=options.seed)))
    compare(real, made)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", help="without, the model's own pretrained ones")
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--count", type=int, default=10_000, help="pictures at most")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def features(options: argparse.Namespace) -> NDArray[np.float32]:
    """The vectors of the folders' pictures, shuffled, (N, dim)."""
    settings = load_settings(
        model=options.model, weights=options.weights, input_size=options.input_size
    )
    decoder, cores = build_decoder(settings), available_cores()
    with closing(build_encoders(settings)) as encoders:
        parts = [
            extract_vectors(
                open_dataset(folder, kind="folder", cache_dir=settings.cache_dir),
                encoders.default,
                decoder,
                cache=None,
                cores=cores,
            ).vectors
            for folder in options.folders
        ]
    rows = np.concatenate(parts)
    chosen = np.random.default_rng(options.seed).permutation(len(rows))[: options.count]
    return np.ascontiguousarray(rows[chosen])


def compare(real: NDArray[np.float32], made: NDArray[np.float32]) -> None:
    """Measures and reports both."""
    import faiss  # noqa: PLC0415 - after announce, see lookalike.cores

    from benchmarks.geometry import measure  # noqa: PLC0415 - imports faiss

    faiss.omp_set_num_threads(available_cores())
    theirs, ours = measure(real), measure(made)
    size = f"{len(real)} x {real.shape[1]}, synthetic against real"
    for rank, quantiles in ours.neighbor_cosines.items():
        line(f"cosine to neighbor {rank}", quantiles, theirs.neighbor_cosines[rank], size)
    line("cosine to a random other", ours.random_cosines, theirs.random_cosines, size)
    for name, figure, other in (
        ("local intrinsic dimension (100 neighbors)",
         ours.intrinsic_dimension, theirs.intrinsic_dimension),
        *((f"share of variance in {count} principal components", share,
           theirs.variance_shares[count]) for count, share in ours.variance_shares.items()),
        ("hubness: skewness of occurrences among 10 nearest", ours.hubness, theirs.hubness),
        ("relative contrast", ours.contrast, theirs.contrast),
        *((f"recall@10 of an inverted file, {probes} of {ours.lists} lists", recall,
           theirs.recalls[probes]) for probes, recall in ours.recalls.items()),
        ("share of zeros", ours.zeros, theirs.zeros),
    ):  # fmt: skip
        report(f"{name}, {size}", f"{figure:.3f}", f"{other:.3f}", figure / other, "")
    draw(
        Chart(
            name="likeness-recall",
            title="Recall@10 of an inverted file",
            x_label=f"lists visited of {ours.lists}",
            y_label="recall",
            lines={"synthetic": list(ours.recalls.items()), "real": list(theirs.recalls.items())},
            scale="log_x",
        )
    )
    draw(
        Chart(
            name="likeness-cosines",
            title="Median cosine to the neighbor of a rank",
            x_label="rank",
            y_label="cosine",
            lines={
                name: [(rank, middle) for rank, (_, middle, _) in one.neighbor_cosines.items()]
                for name, one in (("synthetic", ours), ("real", theirs))
            },
            scale="log_x",
        )
    )


def line(
    name: str, ours: tuple[float, float, float], theirs: tuple[float, float, float], size: str
) -> None:
    """Reports three quantiles; the ratio is of the medians."""
    mine, other = (" / ".join(f"{value:.3f}" for value in three) for three in (ours, theirs))
    report(f"{name} (5 / 50 / 95%), {size}", mine, other, ours[1] / theirs[1], "")


if __name__ == "__main__":
    main()
