"""The command line: what can be asked for. Nothing heavy is imported until a command runs."""

import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated

import typer

from dfkd import __version__
from dfkd.allocator import keep_freed_memory
from dfkd.naming import OneLine, unknown

__all__ = ["app", "main"]

app = typer.Typer(
    help="Data-free distillation: make inputs, match the teacher on them, see where the student matches it.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Words = Annotated[list[str] | None, typer.Argument(metavar="[FILE.yaml] [KEY=VALUE]...", help="settings, in order")]
Out = Annotated[Path | None, typer.Option("--out", help="folder to write; the same settings continue it")]
OutFile = Annotated[Path | None, typer.Option("--out", help="file to write, NAME.safetensors; it must not exist yet")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the resolved settings and stop")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]


def _settings(shown: str) -> str:
    """Where a command's settings are seen, as its help says it."""
    kinds = "samplers (or losses, schemes, models, generators, data)"
    return f"All settings: `dfkd {shown} --dry-run`. Of what they name, with its own: `dfkd list` {kinds}."


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dfkd {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")]


@app.callback()
def _options(debug: Debug = False, version: Version = False) -> None:
    del debug, version  # read by main, wherever it stands; printed by its callback


@app.command(epilog=_settings("compare"))
def compare(
    words: Words = None,
    out: Out = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="processes, one thread each")] = None,
    dry_run: DryRun = False,
) -> None:
    """Train a student on each sampler and show where it matches the teacher (without settings: a demo on digits)."""
    from dfkd import commands

    commands.compare(words or [], out, workers, dry_run)


@app.command(epilog=_settings("scout digits"))
def scout(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEACHER] [FILE.yaml] [KEY=VALUE]...", help="weights or `digits`, and settings"),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Rank samplers for a teacher in seconds, from what it says of their images; no student is trained."""
    from dfkd import commands

    commands.scout(words or [], dry_run, as_json)


@app.command(epilog=_settings("synthesize uniform teacher=FILE --n 100"))
def synthesize(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="SAMPLER [FILE.yaml] [KEY=VALUE]...", help="a sampler, a teacher and settings"),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="how many images")] = None,
    out: Out = None,
    png: Annotated[
        bool, typer.Option("--png", help="write each image as a PNG file too, by the teacher's class")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Keep images of a sampler, labelled by the teacher, as a bank that other runs read as data."""
    from dfkd import commands

    commands.synthesize(words or [], n, out, png, dry_run)


@app.command(epilog=_settings("distill teacher=FILE"))
def distill(words: Words = None, out: Out = None, dry_run: DryRun = False) -> None:
    """Train one student from a teacher on one sampler, and save it."""
    from dfkd import commands

    commands.distill(words or [], out, dry_run)


@app.command(epilog=_settings("teach"))
def teach(words: Words = None, out: OutFile = None, dry_run: DryRun = False) -> None:
    """Train a model on labelled data and save it as a teacher."""
    from dfkd import commands

    commands.teach(words or [], out, dry_run)


@app.command(name="train-generator", epilog=_settings("train-generator data=digits"))
def train_generator(words: Words = None, out: Out = None, dry_run: DryRun = False) -> None:
    """Train a generator of images on data, for samplers that draw from it."""
    from dfkd import commands

    commands.train_generator(words or [], out, dry_run)


@app.command()
def evaluate(words: Words = None, as_json: Json = False) -> None:
    """Accuracy, NLL and ECE of a model on the test part of labelled data."""
    from dfkd import commands

    commands.evaluate(words or [], as_json)


@app.command()
def report(folder: Path) -> None:
    """Write report.html of a comparison's folder again, and print its table."""
    from dfkd import commands

    commands.report(folder)


@app.command(name="list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="samplers, losses, schemes, models, generators or data")] = None,
    as_json: Json = False,
) -> None:
    """What there is by name, with options and defaults."""
    if kind is None:
        raise ValueError("list: expected samplers, losses, schemes, models, generators or data, found none")
    from dfkd import listing

    listing.show(kind, as_json)


_INTERRUPTED = 130  # what a shell reports after Ctrl-C; typer returns it for a KeyboardInterrupt


def main() -> None:
    """One line for bad input, exit status 2, and for a warning; `--debug` shows where it came from."""
    keep_freed_memory()
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        _check_command(arguments)
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = OneLine()
            status = app(args=arguments or ["--help"], standalone_mode=False, prog_name="dfkd") or 0
        if status == _INTERRUPTED:
            _say_interrupted()
        sys.exit(status)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _say_interrupted()
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"dfkd: {_one_line(error)}", file=sys.stderr)
        sys.exit(2 if _is_input(error) else 1)


def _say_interrupted() -> None:
    print("dfkd: interrupted; the same command continues", file=sys.stderr)


def _check_command(arguments: list[str]) -> None:
    """ValueError where the first word is no command; the library that reads the rest does not always guess."""
    known = [command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands]
    first = arguments[0] if arguments else "--help"
    if not first.startswith("-") and first not in known:
        raise unknown("command", first, known)


def _is_input(error: Exception) -> bool:
    # a package that is missing is the user's to install
    return isinstance(error, (ValueError, OSError, ImportError)) or hasattr(error, "format_message")


def _one_line(error: Exception) -> str:
    """What a person can act on; anything unforeseen says how to see more."""
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if context is not None and option and type(error).__name__ == "NoSuchOption":
        known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        return f"{unknown('option', option, [*known, '--debug', '--help'])}"
    text = error.format_message() if hasattr(error, "format_message") else str(error)  # a usage error knows its words
    line = " ".join(text.split()) or type(error).__name__
    return line if _is_input(error) else f"{type(error).__name__}: {line} (--debug shows where)"
