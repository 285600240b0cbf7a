"""The command line: `tinymae COMMAND --flags`, and the same for the scripts. Nothing heavy is imported for --help."""

import argparse
import contextlib
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from ..errors import InputError, Stopped, did_you_mean, ran_out_of_memory

if TYPE_CHECKING:
    from .fields import Settings

# Each command: the module with its `run`, the name of its settings there, and a line of help.
COMMANDS = {
    "pretrain": ("commands.pretrain", "PretrainSettings", "train an autoencoder on images without labels"),
    "linear-probe": ("commands.linear_probe", "LinearProbeSettings", "score frozen features by k-NN and a probe"),
    "finetune": ("commands.finetune", "FinetuneSettings", "train a classifier from pretrained weights or from scratch"),
    "evaluate": ("commands.evaluate", "EvaluateSettings", "look closely at a classifier or at reconstructions"),
    "predict": ("commands.predict", "PredictSettings", "classify new images"),
    "embed": ("commands.embed", "EmbedSettings", "write the features of images: a table and a map to look at"),
    "neighbours": ("commands.neighbours", "NeighboursSettings", "find the images most like some others"),
    "inspect": ("commands.inspect", "InspectSettings", "look for duplicates, outliers and doubtful labels"),
    "export": ("commands.export", "ExportSettings", "write weights for timm, ONNX, torch.export or a web page"),
    "compare": ("study.compare", "CompareSettings", "compare families of autoencoders under one protocol"),
}


METAVARS = {int: "N", float: "X", str: "TEXT"}


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are InputErrors."""

    def error(self, message: str) -> NoReturn:
        unknown = re.findall(r"--[\w-]+", message) if message.startswith("unrecognized") else []
        hint = did_you_mean(unknown, self._option_string_actions)
        raise InputError(f"{message}{hint} (see {self.prog} --help)")


class SeveralAction(argparse.Action):
    """One value, or a tuple of several."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `tinymae`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["--version"]:
        from tinymae import __version__

        print(f"tinymae {__version__}")
    elif not arguments or arguments[0] in ("-h", "--help"):
        lines = "".join(f"  {name:14}{text}\n" for name, (*_, text) in COMMANDS.items())
        print(
            "usage: tinymae COMMAND [--flags]\n\nMasked autoencoders for small images.\n\n"
            f"commands:\n{lines}\ntinymae COMMAND --help lists a command's flags; tinymae --version the version"
        )
    elif arguments[0] not in COMMANDS:
        wrong = f"command {arguments[0]!r} is none of {', '.join(COMMANDS)}{did_you_mean(arguments[:1], COMMANDS)}"
        Parser().exit(2, f"tinymae: error: {wrong}\n")
    else:
        run_command(arguments[0], arguments[1:], prog=f"tinymae {arguments[0]}")


def run_command(
    command: str, arguments: Sequence[str] | None = None, *, prog: str | None = None, description: str | None = None
) -> None:
    """Parse and run; a user's error is one line on stderr and exit code 2. A script of the same name gives its own
    docstring, with which --help begins, and has its arguments from the command line.
    """
    module_name, settings_name, _ = COMMANDS[command]
    with stopping(prog):
        module = import_module(f"tinymae.{module_name}")
    run_main(
        module.run, getattr(module, settings_name), arguments, prog=prog, description=description or module.__doc__
    )


def run_main(
    run, settings: "type[Settings]", arguments: Sequence[str] | None = None, *, prog: str | None = None,
    description: str | None = None,
) -> None:  # fmt: skip
    """The same for any function of any settings."""
    from ..training.memory import explain_memory
    from ..training.processes import leave_group
    from .fields import printable

    with stopping(prog, f"; the same command {'resumes' if settings.resumes else 'starts again'}"):
        parser, chosen = create_parser(settings, prog=prog, description=description), None
        try:
            chosen = settings(**parse(parser, arguments))
            with printable():
                run(chosen)
            leave_group()
        except InputError as error:
            parser.exit(2, f"{parser.prog}: error: {error}\n")
        except Stopped as stopped:
            parser.exit(stopped.exit_code, f"{parser.prog}: {stopped}\n")
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            # Before there is a run that says it: while data are read, or a model is made.
            batch_size, saving = (getattr(chosen, name, None) for name in ("batch_size", "gradient_checkpointing"))
            message = explain_memory(batch_size, gradient_checkpointing=saving)
            parser.exit(2, f"{parser.prog}: error: {message}\n")


@contextlib.contextmanager
def stopping(prog: str | None, remedy: str = "") -> Iterator[None]:
    """Ctrl-C and SIGTERM end what is inside with one line and 128 + the signal's number as the exit code."""
    from ..training.signals import Interrupted, interrupting

    try:
        with interrupting():
            yield
    except Interrupted as stop:
        print(
            f"{prog or Path(sys.argv[0]).name}: stopped by {signal.Signals(stop.number).name}{remedy}", file=sys.stderr
        )
        sys.exit(128 + stop.number)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The settings that a command line gives, by default this program's; the others have their defaults."""
    given = vars(parser.parse_args(None if arguments is None else [*map(str, arguments)]))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def create_parser(
    settings: type, *, prog: str | None = None, description: str | None = None, partial: bool = False
) -> Parser:  # fmt: skip
    """A parser whose flags are the fields of a settings class, in groups. Of `partial` ones none must be given."""
    parser = Parser(
        prog=prog, usage="%(prog)s [--flags]", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    groups: dict[str, Any] = {}
    hints = get_type_hints(settings)
    for f in sorted(fields(settings), key=lambda f: order_of(settings, f)):
        if not f.metadata.get("python"):
            heading = heading_of(settings, f)
            if heading not in groups:
                groups[heading] = parser.add_argument_group(heading)
            options = options_of(f, hints[f.name])
            if f.default is MISSING and not partial:
                options["required"] = True
            groups[heading].add_argument(f"--{f.name.replace('_', '-')}", dest=f.name, help=help_of(f), **options)
    return parser


def name_of(settings: type) -> str:
    """The command with these settings, as people type it."""
    return next(f"tinymae {name}" for name, (_, kind, _) in COMMANDS.items() if kind == settings.__name__)


def heading_of(settings: type, f: Field) -> str:
    """The group of flags that a field stands in: its own, or that of the class that defines it first."""
    owner = next(base for base in reversed(settings.__mro__) if f.name in getattr(base, "__annotations__", {}))
    return f.metadata["group"] or owner.__dict__.get("heading", "run")


def order_of(settings: type, f: Field) -> int:
    """What people set first stands first."""
    if f.name == "data":  # a command declares it after what all commands share
        return -1
    first = ["data", "run", "model", "training"]
    heading = heading_of(settings, f)
    return first.index(heading) if heading in first else len(first) + (heading == "watching")


def options_of(f: Field, kind: Any) -> dict[str, Any]:
    """The arguments of argparse's `add_argument` for a field of this type."""
    from .fields import alternatives

    kinds = alternatives(kind)
    first = str if str in kinds else kinds[0]
    if "const" in f.metadata:
        return {"nargs": "?", "const": f.metadata["const"], "choices": get_args(first)}
    if f.metadata.get("several"):
        return {"nargs": "+", "action": SeveralAction, "metavar": METAVARS[str]}
    if f.metadata.get("append"):
        return {"action": "append", "metavar": f.metadata["append"]}
    if first is bool:
        on_off = f.default is not False
        return {"action": argparse.BooleanOptionalAction if on_off else "store_true"}
    if get_origin(first) is Literal:
        return {"choices": get_args(first)}
    if first is int and any(get_origin(each) is tuple for each in kinds):
        return {"nargs": "+", "type": int, "action": SeveralAction, "metavar": "N"}
    if get_origin(first) is tuple:
        element, *others = get_args(first)
        choices = {"choices": get_args(element)} if get_origin(element) is Literal else {"type": element}
        count = "+" if Ellipsis in others else 1 + len(others)
        return {"nargs": count, **choices, "metavar": METAVARS.get(element, "NAME")}
    return {"type": first, "metavar": METAVARS[first]}


def help_of(f: Field) -> str:
    """A field's help, with its default, and % as argparse wants it."""
    text = f.metadata["help"]
    if f.metadata.get("constructor"):
        from .families import describe_setting

        text = describe_setting(f.name)
    if "(default:" not in text and f.default is not None and f.default is not MISSING and f.default is not False:
        shown = " ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        shown = "yes" if shown is True else shown
        text = f"{text} (default: {shown})" if text else f"(default: {shown})"
    return re.sub(r"%", "%%", text)
