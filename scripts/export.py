"""Hand trained weights to other programs: timm, ONNX Runtime, torch.export, or a page in the browser.

    python scripts/export.py --weights weights/vit-t-mae --format web --output-dir runs/page
    python -m http.server --directory runs/page            # then open http://localhost:8000

    python scripts/export.py --weights runs/mae --format onnx --output-dir runs/onnx       # pip install 'tinymae[onnx]'
    python scripts/export.py --weights runs/finetune --format torch --output-dir runs/pt2
    python scripts/export.py --weights runs/mae --format timm --output-dir runs/timm

Of an autoencoder come the encoder (images -> features) and the reconstruction (uint8 images, mask -> images in [0, 1]);
of a classifier, uint8 images -> probabilities. Normalisation is inside, batches may have any size, and the outputs are
torch's to 1e-4. Takes half a minute on a CPU; the page needs npm for onnxruntime-web, the first time.
"""

import argparse
from pathlib import Path

from tinymae import InputError, MaskedAutoencoder
from tinymae.export import ClassifierGraph, EncoderGraph, ReconstructionGraph, export_onnx, export_torch
from tinymae.files import read_json, write_json
from tinymae.page import read_samples, write_page
from tinymae.runs import run_script
from tinymae.weights import Classifier, export_timm, kind_of, load_autoencoder, load_classifier

SAMPLES = Path(__file__).parent.parent / "assets" / "cifar10"


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="folder of a pretraining or fine-tuning run")
    parser.add_argument("--format", required=True, choices=["timm", "onnx", "torch", "web"])
    parser.add_argument("--output-dir", required=True, help="folder for the files; old ones are replaced")
    graphs = parser.add_argument_group("onnx and torch")
    graphs.add_argument("--pool", choices=["avg", "cls"], default="avg", help="the features (default: %(default)s)")
    graphs.add_argument("--normalised", action="store_true", help="the encoder takes normalised floats, not uint8")
    web = parser.add_argument_group("web")
    web.add_argument("--classifier", help="folder of a fine-tuning or probing run, to show what it guesses")
    web.add_argument("--samples", default=str(SAMPLES), help="folder of pictures to choose from (default: CIFAR-10's)")
    return parser


def main(args: argparse.Namespace) -> list[Path]:
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir {folder} is a file")
    if args.classifier and args.format != "web":
        raise InputError(f"classifier {args.classifier} is for --format web; here give it as --weights")
    if args.format == "timm":
        export_timm(args.weights, folder)
    elif args.format == "web":
        model = load_vit(args.weights)
        classifier = load_vit_classifier(args.classifier) if args.classifier else None
        write_page(model, folder, samples=read_samples(args.samples, model), classifier=classifier)
    else:
        for name, graph in load_graphs(args).items():
            if args.format == "onnx":
                export_onnx(graph, folder / f"{name}.onnx")
            else:
                export_torch(graph, folder / f"{name}.pt2")
        write_json(folder / "config.json", read_json(Path(args.weights) / "config.json"))  # mean, std, class names
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in written:
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    if args.format == "web":
        print(f"to look at it: python -m http.server --directory {folder}, then open http://localhost:8000")
    return written


def load_graphs(args: argparse.Namespace) -> dict:
    """What a weights folder can do, by the names of the files."""
    if kind_of(args.weights) == "classifier":
        return {"classifier": ClassifierGraph(load_vit_classifier(args.weights))}
    model = load_vit(args.weights)
    encoder = EncoderGraph(model, pool=args.pool, normalised=args.normalised)
    return {"encoder": encoder, "reconstruction": ReconstructionGraph(model)}


def load_vit(folder: str) -> MaskedAutoencoder:
    """The autoencoder of a folder. Raises InputError for another family."""
    model = load_autoencoder(folder)
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(f"weights {folder}: only --model mae can be exported, not a {type(model).__name__}")
    return model


def load_vit_classifier(folder: str) -> Classifier:
    """The classifier of a folder. Raises InputError for one of another family."""
    classifier = load_classifier(folder)
    if not isinstance(classifier, Classifier):
        raise InputError(f"weights {folder}: only a ViT's classifier can be exported")
    return classifier


if __name__ == "__main__":
    run_script(main, parse())
