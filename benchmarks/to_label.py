"""What choosing the images to label is worth: `tinymae embed --to-label N` against images drawn at random.

    python benchmarks/to_label.py --weights weights/vit-t-mae      # about ten minutes of one CPU core

For each N a linear probe of N training images of CIFAR-10 that are chosen by their features alone, and of N that are
drawn at random, with several seeds. Both are scored on validation, where their regularisation is chosen as well.
"""

import argparse
from pathlib import Path

import numpy as np
from timing import write_result

import tinymae
from tinymae.data.batches import pick
from tinymae.evaluation.layout import choose_to_label
from tinymae.evaluation.metrics import map_dataset
from tinymae.evaluation.probes import choose_probe, linear_fits, predict_score
from tinymae.models.classifier import feature_function


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="data", help="where CIFAR-10 is, or goes")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=int, help="of each split at most (default: all)")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 20, 50, 100, 200, 480])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/to_label"))
    return parser


def main(args: argparse.Namespace) -> None:
    splits = (tinymae.load_dataset("cifar10", split, data_dir=args.data_dir) for split in ("train", "val"))
    train_set, val_set = (pick(split, args.images or len(split)) for split in splits)
    encode = feature_function(tinymae.load(args.weights))
    train, val = (map_dataset(encode, part, device="cpu", desc="features") for part in (train_set, val_set))
    known, truth = train_set.labels, val_set.labels
    none = np.zeros(len(train), dtype=bool)
    results: dict = {}
    for count in args.counts:
        found: dict[str, list] = {"chosen": [], "random": []}
        for seed in range(args.seeds):
            chosen = choose_to_label(train.numpy(), none, count=count, seed=seed)
            drawn = np.random.default_rng(seed).choice(len(train), count, replace=False)
            for name, rows in {"chosen": chosen, "random": drawn}.items():
                fits = linear_fits(train[rows], known[rows], num_classes=10)
                tried = choose_probe(fits, lambda probe: predict_score(probe, val, truth))[2]
                found[name].append((max(tried.values()), len(known[rows].unique())))
        results[str(count)] = {}
        for name, rows in found.items():
            scores, classes = zip(*rows, strict=True)
            about = {"mean": float(np.mean(scores)), "std": float(np.std(scores, ddof=1)), "classes": classes}
            results[str(count)][name] = {"probe_val": scores, **about}
        print(count, {name: f"{row['mean']:.1f} ± {row['std']:.1f}" for name, row in results[str(count)].items()})
    write_result(args.output_dir / "to_label.json", args, "cpu", results=results)


if __name__ == "__main__":
    main(parse().parse_args())
