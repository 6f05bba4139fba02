"""``python -m benchmarks.tables [ROW ...]``: train, measure, and write ``benchmarks/tables.md``."""

from __future__ import annotations

import argparse

import torch
from benchmarks.tables import page, work
from benchmarks.tables.studies import STUDIES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(STUDIES)}; all unless given")
    parser.add_argument("--variant", action="append", help="only this variant of a row; may be given several times")
    parser.add_argument("--length", choices=("cpu", "full"), help="minutes on two cores, or the published schedule (needs a GPU)")
    parser.add_argument("--train-only", action="store_true", help="measure nothing yet")
    parser.add_argument("--anew", action="store_true", help="forget the rows' figures and trained models, and begin again")
    parser.add_argument("--page", action="store_true", help="train and measure nothing, write the page anew")
    parser.add_argument("--threads", type=int, help="of torch")
    given = parser.parse_args()
    unknown = [row for row in given.rows if row not in STUDIES]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}; the rows are {', '.join(STUDIES)}")
    if given.length == "full" and not work.has_gpu():
        parser.error("the published schedules take days without a GPU, and there is none here: leave --length out")
    if given.anew and (given.variant or given.train_only):
        parser.error("--anew takes whole rows: leave --variant and --train-only out")
    if given.threads:
        torch.set_num_threads(given.threads)
    for row in () if given.page else given.rows or STUDIES:
        for length in [given.length] if given.length else ["cpu", "full"] if work.has_gpu() else ["cpu"]:
            work.do(STUDIES[row], length, given.variant, given.train_only, given.anew)
    print(f"wrote {page.write(STUDIES)}")


if __name__ == "__main__":
    main()
