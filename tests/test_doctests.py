"""The examples in the docstrings give what they say."""

import doctest
import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

import tinymae
from tinymae import convert, data, evaluate, explain, features, files, huggingface, mae, masking, resample, weights
from tinymae.autoencoders import base

MODULES = (base, convert, data, evaluate, explain, features, files, huggingface, mae, masking, resample, weights)


def public_objects(module: ModuleType) -> Iterator[tuple[str, object]]:
    """A module's own public functions and classes, and their public methods."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        yield f"{module.__name__}.{name}", value
        if inspect.isclass(value):
            for method in vars(value):
                if not method.startswith("_") and inspect.isroutine(inspect.unwrap(getattr(value, method))):
                    yield f"{module.__name__}.{name}.{method}", getattr(value, method)


def find_examples() -> dict[str, doctest.DocTest]:
    """Found object by object, as doctest's own walk over a module leaves out what `torch.no_grad` decorates."""
    finder, found = doctest.DocTestFinder(recurse=False, exclude_empty=True), {}
    for module in MODULES:
        for name, value in public_objects(module):
            for example in finder.find(value, name, module=False, globs=vars(module).copy()):
                if example.examples:
                    found[name] = example
    return found


EXAMPLES = find_examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(name):
    said = []
    with torch.random.fork_rng():
        failed, _ = doctest.DocTestRunner(verbose=False).run(EXAMPLES[name], out=said.append, clear_globs=False)
    assert not failed, "".join(said)


def test_every_public_function_and_method_of_the_model_has_an_example():
    exported = [getattr(tinymae, name) for name in tinymae.__all__]
    exported = {f"{value.__module__}.{value.__name__}" for value in exported if inspect.isfunction(value)}
    own = "forward encode encode_tokens encode_layers decode reconstruct anomaly_map attention_maps".split()
    shared = "normalise denormalise save_pretrained from_pretrained".split()
    methods = {f"tinymae.mae.MaskedAutoencoder.{name}" for name in own}
    methods |= {f"tinymae.autoencoders.base.Autoencoder.{name}" for name in shared}
    classes = {"tinymae.mae.MaskedAutoencoder", "tinymae.features.Features"}
    assert {"tinymae.masking.patchify", "tinymae.data.load_dataset"} <= exported
    assert not (exported | methods | classes) - EXAMPLES.keys()
