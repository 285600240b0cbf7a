"""What an ONNX classifier loses and gains by 8-bit integers: size, speed and accuracy beside 32-bit floats.

    python benchmarks/int8.py --weights weights/vit-t-classifier-pretrained --output-dir runs/int8

`tinymae export --format onnx --int8 cifar10` calibrates on training images; both files then classify the same test
images of CIFAR-10, in batches of 32 on one thread. The time is the processor's, which other programs do not lengthen.
Writes int8.json beside the files.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
from timing import write_result

from tinymae import export, load_dataset
from tinymae.data.batches import pick


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="weights/vit-t-classifier-pretrained", help="a classifier of CIFAR-10")
    parser.add_argument("--data-dir", default="data", help="where CIFAR-10 is, or goes")
    parser.add_argument("--output-dir", default="runs/int8")
    parser.add_argument("--images", type=int, default=2000, help="of the test split")
    return parser


def main(args: argparse.Namespace) -> dict:
    folder = Path(args.output_dir)
    export(args.weights, format="onnx", int8="cifar10", data_dir=args.data_dir, output_dir=folder)
    test = pick(load_dataset("cifar10", "test", data_dir=args.data_dir), args.images)
    assert test.labels is not None
    batches = [images.numpy() for images in test.images.split(32)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    result: dict = {"onnxruntime": onnxruntime.__version__}
    predictions = {}
    for name, file in {"fp32": "classifier.onnx", "int8": "classifier.int8.onnx"}.items():
        session = onnxruntime.InferenceSession(folder / file, options, providers=["CPUExecutionProvider"])
        session.run(None, {"images": batches[0]})
        started = time.process_time()
        found = [session.run(None, {"images": images})[0] for images in batches]
        seconds = time.process_time() - started
        predictions[name] = np.concatenate(found).argmax(axis=1)
        right = predictions[name] == test.labels.numpy()
        megabytes = (folder / file).stat().st_size / 1e6
        result[name] = {
            "megabytes": megabytes,
            "images_per_second": len(test) / seconds,
            "accuracy": float(100 * right.mean()),
        }
    result["same_class"] = float(100 * (predictions["fp32"] == predictions["int8"]).mean())
    print(result)
    return write_result(folder / "int8.json", args, "cpu", **result)


if __name__ == "__main__":
    main(parse().parse_args())
