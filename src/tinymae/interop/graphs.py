"""Trained weights for programs that know nothing of tinymae: ONNX and torch.export graphs.

Each graph takes a whole job, preprocessing included, over a batch of any size. `ViTInpaintingGraph` differs from
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
from ..models.classifier import Classifier, feature_function
from ..models.mae import MaskedAutoencoder
from ..models.masked import PatchMasking
from ..models.masking import patchify
from ..models.vit import set_fused_attention

OPSET = 18  # what the exporter speaks; 17 would be converted from it


class Graph(nn.Module):
    """A job to be exported: `inputs` are an example of each by its name, `output` is the name of the answer."""

    output: str

    def __init__(self, model: Autoencoder | Classifier, *, normalised: bool = False):
        super().__init__()
        dtype = getattr(torch, model.reading.get("depth", "uint8"))
        images = torch.zeros(2, model.in_channels, *model.image_size, dtype=dtype)  # of one, exporters make a constant
        self.model, self.inputs = model, {"images": model.normalise(images).float() if normalised else images}


class EncoderGraph(Graph):
    """Images (B, C, H, W) -> features (B, F), as `encode` of any family.

    A graph's inputs have one type each: pixels with `normalised=False`, uint8 or, of weights that learned from images
    of 16 bits, uint16; else floats normalised by the data's mean and std.
    """

    model: Autoencoder
    output = "features"

    def __init__(self, model: Autoencoder, *, pool: str = "avg", normalised: bool = False):
        model.require_pool(pool)
        super().__init__(model, normalised=normalised)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        return feature_function(self.model, pool=self.pool)(images)


class ClassifierGraph(Graph):
    """Pixels (B, C, H, W), see `EncoderGraph`, -> probabilities (B, K): see `Classifier.probabilities`."""

    model: Classifier
    output = "probabilities"

    def forward(self, images: Tensor) -> Tensor:
        # Not model(images), whose switching of autocast does not belong in a graph.
        return self.model.probabilities(self.model.head(self.model.encoder.encode(images)))


class ReconstructionGraph(Graph):
    """Pixels (B, C, H, W) -> images in [0, 1], as `reconstruct` of a family that hides nothing."""

    model: Autoencoder
    output = "reconstruction"

    def forward(self, images: Tensor) -> Tensor:
        return self.model.reconstruct(images).images


class InpaintingGraph(Graph):
    """Pixels (B, C, H, W) and mask bool (B, N), True = hidden -> images in [0, 1], hidden patches painted in.

    Images may hide different numbers of patches, but each must keep one visible: the brightness of the others is
    interpolated from it, and a graph cannot refuse its input.
    """

    model: PatchMasking
    output = "reconstruction"

    def __init__(self, model: PatchMasking):
        super().__init__(model)
        self.inputs["mask"] = torch.arange(model.num_patches).expand(2, -1) == 0

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        images = self.model.normalise(images)
        pasted = self.model.paste(self.predict(images, mask), patchify(images, self.model.patch_size), mask)
        return self.model.denormalise(pasted)

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """See `PatchMasking.predict`."""
        return self.model.predict(images, mask)


class ViTInpaintingGraph(InpaintingGraph):
    """The same of a ViT, whose hidden patches are closed to attention."""

    model: MaskedAutoencoder

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        model = self.model
        closed = nn.functional.pad(mask, (model.num_prefix_tokens, 0))  # (B, prefix + N)
        # Added to the scores, not -inf: an image that hides everything then stays finite inside the encoder.
        bias = closed[:, None, None, :] * torch.finfo(torch.float32).min  # (B, 1, 1, prefix + N)
        tokens = model.decoder_embed(model.encoder.forward_features(images, attn_mask=bias))  # (B, prefix + N, D)
        tokens = torch.where(closed[..., None], model.mask_token, tokens) + model.decoder_pos_embed
        return model.decoder_pred(model.run_decoder(tokens))


def reconstruction_graph(model: Autoencoder) -> Graph:
    """What an autoencoder makes of images: a family that hides patches takes a mask as well."""
    if isinstance(model, MaskedAutoencoder):
        return ViTInpaintingGraph(model)
    return InpaintingGraph(model) if isinstance(model, PatchMasking) else ReconstructionGraph(model)


def trace(graph: Graph) -> torch.export.ExportedProgram:
    """The graph as a torch.export program for batches of any size; `graph` itself stays as it is."""
    graph = copy.deepcopy(graph).cpu().float().eval().requires_grad_(False)
    set_fused_attention(graph, False)  # one operator less for a runtime to know
    batch = torch.export.Dim("batch", min=1, max=2**31 - 1)  # torch 2.6 refuses a dimension without end
    inputs = {name: example.cpu() for name, example in graph.inputs.items()}
    return torch.export.export(graph, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs}, strict=False)


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
