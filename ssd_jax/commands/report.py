"""`ssd-jax report page` and `ssd-jax report compare`."""

from ssd_jax.commands.common import (
    folder_or_url,
    folder_to_fill,
    is_printed,
    local_path,
    place_in,
    verb,
    workdir,
)


def add(verbs) -> None:
    """Adds the verb."""
    report = verbs.add_parser(
        "report", help="write the report of a run, or compare runs", description="Reports of runs."
    )
    kinds = report.add_subparsers(dest="kind", metavar="KIND", required=True)
    page = verb(
        kinds,
        "page",
        _page,
        "rewrite the report.html of a run, finished or not",
        example="ssd-jax report page --workdir runs/bccd",
    )
    workdir(page, "folder of a run, or s3://...")
    compare = verb(
        kinds,
        "compare",
        _compare,
        "put runs side by side: metrics, settings that differ, curves",
        example="ssd-jax report compare runs/a runs/b --out comparison/",
        note="Prints a Markdown table; --out also writes a page with the curves.\n"
        "Runs that differ only in the seed share a column: mean [lowest, highest].\n"
        "Unfinished runs are shown with their last evaluation.",
    )
    compare.add_argument(
        "workdirs",
        nargs="+",
        metavar="DIR",
        type=folder_or_url,
        help="folder of a run, or s3://...",
    )
    compare.add_argument(
        "--out", metavar="DIR", type=folder_or_url, help="folder or s3://... for the page"
    )
    compare.add_argument(
        "--json",
        metavar="FILE",
        type=local_path,
        help="write a line per run with the settings that differ and its metrics; - prints the "
        "lines last",
    )


def _page(options, rest):
    from ssd_jax.report.collect import open_run
    from ssd_jax.report.page import write_page

    with folder_to_fill(options.workdir) as out:
        path = write_page(open_run(options.workdir), out)
    print(place_in(options.workdir, path.name))


def _compare(options, rest):
    from ssd_jax.files import write_text
    from ssd_jax.report.collect import open_run
    from ssd_jax.report.compare import markdown, record_lines, write_comparison

    runs = [open_run(folder) for folder in options.workdirs]
    # Printed once all is written, because the reader of the output may leave early, e.g. `head`.
    printed = [markdown(runs)]
    if options.json and not is_printed(options.json):
        write_text(options.json, record_lines(runs))
    if options.out:
        with folder_to_fill(options.out) as out:
            path = write_comparison(runs, out)
        printed.append(place_in(options.out, path.name))
    print(*printed, sep="\n")
    if is_printed(options.json):
        print(record_lines(runs), end="")
