"""
Group published datasets, models and Spaces in one collection of the Hub.

    python -m evaluation collect --title "SightSound-R1" --datasets ORG/avqa-audio ORG/traces --models ORG/student ORG/verifier

The collection belongs to `--namespace`, or to the owner of the first repository. The same command with more ids adds them.
"""

from dataclasses import dataclass, field

from sightsound.cli import InputError, parse_arguments
from sightsound.data.sources import REPO_ID
from sightsound.hub.publish import make_collection


@dataclass
class CollectArguments:
    title: str = field(metadata={"help": "title of the collection"})
    datasets: list[str] | None = field(default=None, metadata={"help": "ORG/NAME of each"})
    models: list[str] | None = field(default=None, metadata={"help": "ORG/NAME of each"})
    spaces: list[str] | None = field(default=None, metadata={"help": "ORG/NAME of each, such as metrics and trace browsers"})
    namespace: str | None = field(default=None, metadata={"help": "user or organisation that owns the collection"})
    private: bool = field(default=False, metadata={"help": "make the collection private"})


def main(argv: list[str]) -> None:
    args = parse_arguments(CollectArguments, __doc__, argv)
    by_kind = {"dataset": args.datasets, "model": args.models, "space": args.spaces}
    items = [(repo_id, kind) for kind, ids in by_kind.items() for repo_id in ids or []]
    if not items:
        raise InputError("nothing to group: give --datasets, --models or --spaces")
    wrong = [repo_id for repo_id, _ in items if not REPO_ID.fullmatch(repo_id)]
    if wrong:
        raise InputError(f"{wrong[0]} is no id of the Hub; expected ORG/NAME, such as my-lab/avqa-audio")
    namespace = args.namespace or items[0][0].split("/")[0]
    print(f"collection: {make_collection(args.title, namespace, items, args.private)}")
