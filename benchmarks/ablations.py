"""Table of the top-1 of each ablation, in order and with shuffled frames; see `ablations.sh`.

python benchmarks/ablations.py FOLDER      # a folder of runs named NAME,SEED
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from measure import finish


def main(folder: Path, *, is_quick: bool) -> None:
    """Print the table, and write the result unless `is_quick`."""
    found: defaultdict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(folder.iterdir(), key=lambda path: path.stat().st_ctime):
        name = run.name.rpartition(",")[0]
        for kind in ("val", "val+shuffled"):
            report = json.loads((run / f"predictions/{kind}.json").read_text())
            found[name][kind].append(round(report["metrics"]["top1"], 4))
    print(f"{'top-1, mean of seeds':40s}  in order  shuffled")
    for name, kinds in found.items():
        print(f"{name:40s}  {mean(kinds['val']):8.1%}  {mean(kinds['val+shuffled']):8.1%}")
    if is_quick:
        print(json.dumps(found))
    else:
        finish("ablations", {"command": "bash benchmarks/ablations.sh", "top1": found})


if __name__ == "__main__":
    main(Path(sys.argv[1]), is_quick="--quick" in sys.argv[2:])
