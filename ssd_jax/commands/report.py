"""`ssd-jax report page` and `ssd-jax report compare`."""

import pathlib

from ssd_jax.commands.common import verb, workdir


def add(verbs) -> None:
    """Adds the verb."""
    report = verbs.add_parser(
        "report", help="write the page of a run, or compare runs", description="Reports of runs."
    )
    kinds = report.add_subparsers(dest="kind", metavar="KIND", required=True)
    page = verb(
        kinds,
        "page",
        _page,
        "write report.html of a finished run anew",
        example="ssd-jax report page --workdir runs/bccd",
    )
    workdir(page, "folder of a run")
    compare = verb(
        kinds,
        "compare",
        _compare,
        "put runs side by side: metrics, settings that differ, curves",
        example="ssd-jax report compare runs/a runs/b --out comparison/",
        note="A Markdown table is printed; --out gets a page and a picture as well.",
    )
    compare.add_argument("workdirs", nargs="+", metavar="DIR", type=pathlib.Path)
    compare.add_argument("--out", metavar="DIR", type=pathlib.Path)


def _page(options, rest):
    from ssd_jax.report.page import write_page

    print(write_page(options.workdir))


def _compare(options, rest):
    from ssd_jax.report.collect import open_run
    from ssd_jax.report.compare import markdown, write_comparison

    runs = [open_run(folder) for folder in options.workdirs]
    print(markdown(runs))
    if options.out:
        print(write_comparison(runs, options.out))
