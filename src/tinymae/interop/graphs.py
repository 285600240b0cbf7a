"""Trained weights for programs that know nothing of tinymae: ONNX and torch.export graphs.

Each graph takes a whole job, preprocessing included, over a batch of any size. `InpaintingGraph` differs from
`MaskedAutoencoder.reconstruct` in how it hides patches: gathering the visible ones would fix their number when the
graph is drawn, so all tokens run and the hidden ones are closed to attention. That is the same mathematics, costs the
time of a full image, and lets every image of a batch hide its own number of patches.

Works with torch 2.6 and 2.15.
"""

import copy
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import write_bytes
from ..models.base import Autoencoder
from ..models.classifier import Classifier
from ..models.encoding import feature_function
from ..models.mae import MaskedAutoencoder
from ..models.masked import PatchMasking
from ..models.masked_conv import MaskedConvAutoencoder
from ..models.masking import patchify
from ..models.vit import set_fused_attention

OPSET = 18  # what the exporter speaks; 17 would be converted from it


class Graph(nn.Module):
    """A job to be exported: `inputs` are an example of each by its name, `output` is the name of the answer."""

    inputs: dict[str, Tensor]
    output: str


class EncoderGraph(Graph):
    """Images (B, C, H, W) -> features (B, F), as `encode` of any family.

    A graph's inputs have one type each: uint8 pixels with `normalised=False`, else floats normalised by the data's mean
    and std.
    """

    def __init__(self, model: Autoencoder, *, pool: str = "avg", normalised: bool = False):
        super().__init__()
        self.model, self.pool = model, pool
        model.require_pool(pool)
        self.inputs = {"images": example_images(model, normalised=normalised)}
        self.output = "features"

    def forward(self, images: Tensor) -> Tensor:
        return feature_function(self.model, pool=self.pool)(images)


class ClassifierGraph(Graph):
    """uint8 images (B, C, H, W) -> probabilities (B, K) of the classes: see `Classifier.probabilities`."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier
        self.inputs, self.output = {"images": example_images(classifier)}, "probabilities"

    def forward(self, images: Tensor) -> Tensor:
        # Not classifier(images), whose switching of autocast does not belong in a graph.
        return self.classifier.probabilities(self.classifier.head(self.classifier.encoder.encode(images)))


class ReconstructionGraph(Graph):
    """uint8 images (B, C, H, W) -> images in [0, 1], as `reconstruct` of a family that hides nothing."""

    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model = model
        self.inputs, self.output = {"images": example_images(model)}, "reconstruction"

    def forward(self, images: Tensor) -> Tensor:
        return self.model.reconstruct(images).images


class MaskedConvGraph(Graph):
    """As `InpaintingGraph`, of a masked convolutional network, which computes what it is asked for in any case."""

    def __init__(self, model: MaskedConvAutoencoder):
        super().__init__()
        self.model = model
        self.inputs, self.output = {"images": example_images(model), "mask": example_mask(model)}, "reconstruction"

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        model = self.model
        images = model.normalise(images)
        predicted = model.predict(images, mask)
        return model.denormalise(model.paste(predicted, patchify(images, model.patch_size), mask))


class InpaintingGraph(Graph):
    """uint8 images (B, C, H, W) and mask bool (B, N), True = hidden -> images in [0, 1], hidden patches painted in.

    Images may hide different numbers of patches, but each must keep one visible: the brightness of the others is
    interpolated from it, and a graph cannot refuse its input.
    """

    def __init__(self, model: MaskedAutoencoder):
        super().__init__()
        self.model = model
        self.inputs, self.output = {"images": example_images(model), "mask": example_mask(model)}, "reconstruction"

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        model, prefix = self.model, self.model.num_prefix_tokens
        images = model.normalise(images)
        closed = nn.functional.pad(mask, (prefix, 0))  # (B, prefix + N)
        # Added to the scores, not -inf: an image that hides everything then stays finite inside the encoder.
        bias = closed[:, None, None, :] * torch.finfo(torch.float32).min  # (B, 1, 1, prefix + N)
        tokens = model.decoder_embed(model.encoder.forward_features(images, attn_mask=bias))  # (B, prefix + N, D)
        tokens = torch.where(closed[..., None], model.mask_token, tokens) + model.decoder_pos_embed
        predicted = model.decoder_pred(model.run_decoder(tokens))
        return model.denormalise(model.paste(predicted, patchify(images, model.patch_size), mask))


def reconstruction_graph(model: Autoencoder) -> Graph:
    """What an autoencoder makes of images: a family that hides patches takes a mask as well."""
    if isinstance(model, MaskedAutoencoder):
        return InpaintingGraph(model)
    return MaskedConvGraph(model) if isinstance(model, MaskedConvAutoencoder) else ReconstructionGraph(model)


def example_mask(model: PatchMasking) -> Tensor:
    """A mask of two images, to draw a graph with."""
    mask = torch.zeros(2, model.num_patches, dtype=torch.bool)
    mask[:, 0] = True
    return mask


def example_images(model: Autoencoder | Classifier, *, normalised: bool = False) -> Tensor:
    """A batch of two of the model's size, to draw a graph with: of one, exporters would make a constant."""
    images = torch.zeros(2, model.in_channels, *model.image_size, dtype=torch.uint8)
    return model.normalise(images) if normalised else images


def trace(graph: Graph) -> torch.export.ExportedProgram:
    """The graph as a torch.export program for batches of any size; `graph` itself stays as it is."""
    graph = copy.deepcopy(graph).cpu().eval().requires_grad_(False)
    set_fused_attention(graph, False)  # one operator less for a runtime to know
    batch = torch.export.Dim("batch", min=1, max=2**31 - 1)  # torch 2.6 refuses a dimension without end
    shapes, inputs = {}, {}
    for name, example in graph.inputs.items():
        shapes[name], inputs[name] = {0: batch}, example.cpu()
    return torch.export.export(graph, (), inputs, dynamic_shapes=shapes, strict=False)


def export_torch(graph: Graph, path: str | Path) -> None:
    """Write the graph as a `.pt2` file, which runs without tinymae and timm.

    `torch.export.load(path).module()` takes the inputs by their names.
    """
    buffer = io.BytesIO()
    torch.export.save(trace(graph), buffer)
    write_bytes(path, buffer.getvalue())


def export_onnx(graph: Graph, path: str | Path) -> None:
    """Write the graph as one ONNX file (opset 18), its inputs and output named as in the graph's docstring.

    Raises InputError without the packages onnx and onnxscript.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise InputError(f"an ONNX file needs the package {error.name}: pip install onnx onnxscript") from None
    program = torch.onnx.export(
        trace(graph), input_names=list(graph.inputs), output_names=[graph.output], opset_version=OPSET, dynamo=True,
        verbose=False,
    )  # fmt: skip
    assert program is not None  # with dynamo
    proto = program.model_proto
    # torch 2.6 writes down the batch that the graph was drawn with, and later ones a symbol's number.
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(proto, full_check=True)
    # Not by program.save, which puts the weights into a second file that a rename would lose.
    write_bytes(path, proto.SerializeToString())
