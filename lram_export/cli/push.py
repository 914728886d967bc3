"""`push`: a bundle to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from lram_export.cli import options
from lram_export.cli.console import ConsoleProgress, message, print_json, print_table
from lram_export.cli.parameters import INPUT_FILE, Command
from lram_export.describe import counted, human_bytes
from lram_export.errors import UsageError


@click.command(cls=Command)
@options.bundle
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Only its owner sees the repository, if it is made for this.")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to, made if it is not there; default: main.")
@click.option("--message", "words", metavar="TEXT", help="Of the commit; default: name and precision of the bundle.")
@click.option("--create-pr", is_flag=True, help="Open a pull request in place of committing.")
@click.option("--license", "license_name", metavar="ID", help="For the card, as the Hub calls it, e.g. apache-2.0.")
@click.option(
    "--evaluation", "evaluations", type=INPUT_FILE, multiple=True,
    help="Closed loop, for the card: what lram-export evaluate --json printed; may be repeated.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print files and card, and push nothing; needs no network.")
@options.as_json
@options.quiet
def push(
    bundle: Path,
    repository: str,
    private: bool,
    revision: str | None,
    words: str | None,
    create_pr: bool,
    license_name: str | None,
    evaluations: tuple[Path, ...],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Put a bundle on the Hugging Face Hub, with a model card made of what it says; one commit, or none.

    Every command then takes hf://OWNER/NAME in place of a folder, and so does load_policy.
    """
    from lram_export.bundle.bundle import Bundle
    from lram_export.episodes.evaluations import read_evaluations
    from lram_export.hub.address import repository_named
    from lram_export.sharing.card import CARD_FILE, card
    from lram_export.sharing.push import PushOptions, files_to_push
    from lram_export.sharing.push import push as push_bundle

    if create_pr and private:
        raise UsageError("--private: contradicts --create-pr, which makes no repository")
    to, opened = repository_named(repository), Bundle.open(bundle)
    digests = {opened.artifact_digest(target) for target in opened.targets}
    text = card(opened, to, read_evaluations(evaluations, digests), license_name)
    if dry_run:
        files = files_to_push(opened)
        if as_json:
            print_json({"repository": str(to), "files": files, "card": text})
            return
        title = f"{bundle} to {to}: {counted(len(files), 'file')}, {human_bytes(sum(files.values()))}, and {CARD_FILE}"
        print_table(title, ["file", "bytes"], [[name, f"{size:,}"] for name, size in files.items()], many=True)
        click.echo(f"\n{text}", nl=False)
        return
    asked = PushOptions(private, revision, words, create_pr)
    done = push_bundle(opened, to, text, asked, ConsoleProgress(quiet))
    if as_json:
        print_json({**vars(done), "address": str(done.address)})
        return
    if done.card_kept:
        message(f"{to}: its {CARD_FILE} is not of lram-export push, and stays as it is", quiet)
    if done.removed:
        message(f"{to}: removed what is not of this bundle: {', '.join(done.removed)}", quiet)
    click.echo(f"{done.address} {done.url}")
