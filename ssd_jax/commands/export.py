"""`ssd-jax export`."""

from ssd_jax.commands.common import folder_or_url, step, verb, workdir


def add(verbs) -> None:
    """Adds the verb."""
    export = verb(
        verbs,
        "export",
        _export,
        "export a trained detector as one verified folder, to serve or run elsewhere",
        example="ssd-jax export --workdir runs/bccd --out model/ --onnx",
        note="DIR and DIR.tar.gz appear only after a second process has verified that they give\n"
        "the run's own detections. docs/export.md describes their files.",
    )
    workdir(export, "folder of a run, or s3://...")
    export.add_argument(
        "--out", required=True, metavar="DIR", type=folder_or_url, help="a new folder, or s3://..."
    )
    export.add_argument(
        "--onnx", action="store_true", help="also write an ONNX model; needs the extra onnx"
    )
    export.add_argument(
        "--no-archive", dest="archive", action="store_false", help="only DIR, without DIR.tar.gz"
    )
    step(export)


def _export(options, rest):
    from ssd_jax.export.write import export_run
    from ssd_jax.train.mirror import workdir_to_read

    folder = workdir_to_read(options.workdir)
    meta = export_run(
        folder, options.out, step=options.step, onnx=options.onnx, archive=options.archive
    )
    if len(meta["measured_at"]) > 1:
        print(
            f"the exported detector uses images of {meta['image_size']} px only; the metrics in "
            "meta.json are those of the run, which was evaluated at "
            f"{', '.join(map(str, meta['measured_at']))} px (docs/export.md)"
        )
    checked = meta["verification"]
    print(
        f"checked on {checked['detections']} detections on {checked['pictures']}; the largest "
        "difference of a box or a score:"
    )
    for form, found in checked["found"].items():
        if "refused" in found:
            print(f"  {form:12} will not be used: {found['refused']}")
            continue
        seconds = f", {found['seconds'] * 1000:.0f} ms per image" if "seconds" in found else ""
        print(f"  {form:12} {found['largest_deviation']:.1e}{seconds}")
    out = str(options.out).rstrip("/")
    archive = f" and {out}.tar.gz" if options.archive else ""
    print(f"{out}{archive}")
