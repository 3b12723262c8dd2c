#!/usr/bin/env bash
# The paper's experiment: Table 1 and Figure 3 on ImageNet-1k.
#
#   examples/imagenet.sh IMAGENET [OUTPUT]
#
# IMAGENET holds train/<WordNet id>/*.JPEG and val/<WordNet id>/*.JPEG, 1,000 classes each; OUTPUT is runs/imagenet by
# default. What is finished is kept: after an interruption the same command goes on.
#
# From the environment:
#   GPUS      processes, one a GPU (default 1)
#   MODEL     srnn_resnet18, as in the paper, or any other
#   VARIANTS  "vanilla half_gru" as in the paper; mean_logit is the ensemble, trained
#   SIZES     224,448
#   WORKERS   processes that read images for each GPU (default 8)
#   RIVALS    backbones to compare with their rivals on frozen features, such as
#             "srnn_efficientnet_b0.ra4_e3600_r224_in1k srnn_efficientnet_b1.ra4_e3600_r240_in1k
#             srnn_mobilenetv4_conv_medium" (default none: docs/compare.md)
#   COMPARE   more options of srnn-zoo compare, such as "--sizes 224,336 --seeds 3"
#   SETTINGS  more options of srnn-zoo train, such as "--set precision=bf16 --set grad_accum_steps=4"
set -euo pipefail

if [ $# -lt 1 ] || [ ! -d "$1/train" ] || [ ! -d "$1/val" ]; then
    echo "usage: examples/imagenet.sh IMAGENET [OUTPUT], where IMAGENET holds train/<class>/* and val/<class>/*" >&2
    exit 2
fi
imagenet=$1
output=${2:-runs/imagenet}
model=${MODEL:-srnn_resnet18}
sizes=${SIZES:-224,448}
workers=${WORKERS:-8}
read -ra variants <<< "${VARIANTS:-vanilla half_gru}"
read -ra rivals <<< "${RIVALS:-}"
read -ra compare <<< "${COMPARE:-}"
read -ra settings <<< "${SETTINGS:-}"

# rows 1 to 4 of Table 1: the base CNN at each scale and the two ensembles, before any training
if [ ! -f "$output/zero-shot/table.md" ]; then
    srnn-zoo evaluate "$imagenet" "$model" --split val --sizes "$sizes" --workers "$workers" --batch-size 32 \
        --output "$output/zero-shot"
fi

trained=()
for variant in "${variants[@]}"; do
    run=$output/$variant
    resume=()
    if [ -d "$run/state" ]; then
        resume=(--resume)
    fi
    torchrun --standalone --nproc_per_node "${GPUS:-1}" -m srnn_zoo.cli train "$imagenet" --output "$run" \
        --model "$model" --variant "$variant" --sizes "$sizes" --recipe paper --workers "$workers" \
        ${settings[@]+"${settings[@]}"} ${resume[@]+"${resume[@]}"}
    trained+=("$run/last")
done

for backbone in ${rivals[@]+"${rivals[@]}"}; do
    mkdir -p "$output/rivals"
    srnn-zoo compare "$imagenet" --output "$output/rivals/$backbone" --model "$backbone" --seeds 1 \
        --workers "$workers" --plot "$output/rivals/$backbone.png" ${compare[@]+"${compare[@]}"}
done

# rows 5 and 6, and Figure 3
srnn-zoo evaluate "$imagenet" "${trained[@]}" --base "$model" --split val --sizes "$sizes" --workers "$workers" \
    --batch-size 32 --output "$output/table"
srnn-zoo curves "${trained[@]/%\/last/}" --output "$output/curves.png"
echo "Table 1 is $output/table/table.md, Figure 3 $output/curves.png"
