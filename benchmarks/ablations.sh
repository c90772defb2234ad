#!/usr/bin/env bash
# The paper's ablations (arXiv 2102.00719, section 5) as a loop over options, on the demo's videos:
#
#     bash benchmarks/ablations.sh [FOLDER]      # 20 minutes on two cores; resumes where it stopped
#     bash benchmarks/ablations.sh --quick       # one run of one epoch, as a test; writes no result
#
# The demo's classes differ only in the order of the frames. Every run is evaluated with the frames
# in order and shuffled; benchmarks/ablations.py prints the table.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
quick=
if [ "${1:-}" = --quick ]; then
    quick=--quick
    shift
fi
folder=${1:-$(mktemp -d)}
recipe="--recipe paper --positions seconds --layers 1 --heads 4 --intermediate 384 --head-dim 192 --dropout 0 --head-dropout 0
    --optimizer adamw --lr 3e-4 --warmup-epochs 10 --schedule cosine --batch-size 16 --epochs 80
    --clip-frames 8"
seeds="0 1 2"
[ -n "$quick" ] && recipe="$recipe --epochs 1 --warmup-epochs 0" && seeds=0

[ -d "$folder/features/shards" ] || vtnpipe demo "$folder" --seeds 1 --epochs 1
mkdir -p "$folder/ablations"

# With one layer, only the attention of [CLS] is used, so the window changes nothing.
# name | options; of an option that is given twice, the last counts
while IFS='|' read -r name options; do
    for seed in $seeds; do
        run="$folder/ablations/$name,$seed"
        [ -f "$run/predictions/val+shuffled.json" ] && continue
        vtnpipe train-temporal "$folder/features" "$run" $recipe $options --seed "$seed"
        vtnpipe evaluate "$run" "$folder/features" --bootstrap 0
        vtnpipe evaluate "$run" "$folder/features" --bootstrap 0 --shuffle-frames
    done
    [ -z "$quick" ] || break
done <<'EOF'
1 layer, window 18, learned positions, 2 s|
3 layers|--layers 3
6 layers|--layers 6
positions: sinusoidal|--position-embedding sinusoidal
positions: none|--position-embedding none
footprint 0.5 s|--clip-seconds 0.5
footprint 1 s|--clip-seconds 1
3 layers, window 2|--layers 3 --attention-window 2
3 layers, window 4|--layers 3 --attention-window 4
encoder: full|--encoder full
attention: uniform|--encoder uniform
encoder: mean|--encoder mean
EOF
python "$here/ablations.py" "$folder/ablations" $quick
