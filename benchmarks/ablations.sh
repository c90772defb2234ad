#!/usr/bin/env bash
# The paper's ablations (arXiv 2102.00719, section 5) as one loop over options, on the demo's videos:
#
#     bash benchmarks/ablations.sh [FOLDER]      # 20 minutes on two cores; goes on where it stopped
#     bash benchmarks/ablations.sh --quick       # one run of one epoch, to try it; writes no result
#
# In the demo the class is the order of the frames alone. Every run is evaluated as
# it is and with its frames shuffled; benchmarks/ablations.py makes the table.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
quick=
if [ "${1:-}" = --quick ]; then
    quick=--quick
    shift
fi
folder=${1:-$(mktemp -d)}
recipe="--layers 1 --heads 4 --intermediate 384 --head-dim 192 --dropout 0 --head-dropout 0
    --optimizer adamw --lr 3e-4 --warm-up-epochs 10 --schedule cosine --batch-size 16 --epochs 80
    --clip-frames 8"
seeds="0 1 2"
[ -n "$quick" ] && recipe="$recipe --epochs 1 --warm-up-epochs 0" && seeds=0

[ -d "$folder/features/shards" ] || vtnpipe demo "$folder" --seeds 1 --epochs 1
mkdir -p "$folder/ablations"

# (Of one layer, only what [CLS] attends to is read, so its window changes nothing.)
# name | options that differ; of an option that is given twice, the last counts
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
3 layers, window 2|--layers 3 --window 2
3 layers, window 4|--layers 3 --window 4
encoder: full|--encoder full
encoder: perceiver|--encoder perceiver
encoder: mean|--encoder mean
EOF
python "$here/ablations.py" "$folder/ablations" $quick
