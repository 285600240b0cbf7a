"""The examples in the docstrings give what they say."""

import doctest
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest
import torch

import tinymae

LATER = {"tinymae.commands", "tinymae.study", "tinymae.training"}  # packages that are left out


def all_modules() -> Iterator[ModuleType]:
    """Every module of the package, but for those of the packages that are left out."""
    for found in pkgutil.walk_packages(tinymae.__path__, "tinymae."):
        if not any(f"{found.name}.".startswith(f"{package}.") for package in LATER):
            yield import_module(found.name)


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
    for module in all_modules():
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
    homes = {name: f"tinymae.{module}" for module, names in tinymae.HOMES.items() for name in names}
    assert homes.keys() == set(tinymae.__all__)
    covered = [name for name, home in homes.items() if not home.startswith(tuple(f"{each}." for each in LATER))]
    exported = {f"{homes[name]}.{name}" for name in covered if inspect.isfunction(getattr(tinymae, name))}
    own = "forward encode encode_tokens encode_layers encode_dense decode".split()
    methods = {f"tinymae.models.mae.MaskedAutoencoder.{name}" for name in own}
    methods.add("tinymae.models.masked.PatchMasking.reconstruct")
    methods |= {f"tinymae.models.pretrained.Pretrained.{name}" for name in ("save_pretrained", "from_pretrained")}
    methods |= {f"tinymae.models.base.Encoder.{name}" for name in ("normalise", "denormalise")}
    classes = {"tinymae.models.mae.MaskedAutoencoder", "tinymae.evaluation.scikit_learn.Features"}
    assert {"tinymae.models.masking.patchify", "tinymae.data.load.load_dataset"} <= exported
    assert not (exported | methods | classes) - EXAMPLES.keys()
