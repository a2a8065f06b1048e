#!/usr/bin/env bash
# Makes DIR (default .venv-roboflow) an environment with Roboflow's inference-models client, CPU only, for packages on disk;
# tests/deployment/test_roboflow_client.py and benchmarks/roboflow_client.py use it. Takes some minutes and about 2 GB.
set -euo pipefail
dir=${1:-.venv-roboflow}
python=${PYTHON:-python3}
rm -f "$dir/.ready"
"$python" -m venv "$dir"
install() { "$dir/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

# The client asks for many packages that other kinds of models need; these are the ones that RF-DETR packages need.
install torch==2.13.0 numpy==2.4.6
install --no-deps torchvision==0.28.0 inference-models==0.39.6 peft==0.21.2 accelerate==1.15.0 psutil==7.2.2
install onnxruntime==1.22.1 opencv-python-headless==5.0.0.93 pillow==12.3.0 supervision==0.31.2 transformers==5.15.1 einops==0.8.2 \
  pydantic==2.14.3 requests==2.34.2 backoff==2.2.1 python-dotenv==1.2.4 packaging==26.3 rich==14.3.4 filelock==3.32.7 PyYAML==6.0.3 \
  pybase64==1.0.2 pycocotools==2.0.11 scikit-image==0.25.2

# The published torchvision is built for CUDA and its operators do not load beside a CPU torch; importing it only needs
# these two to have been named before.
packages=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cat > "$packages/name_torchvision_operators.py" <<'PY'
from torch.library import Library

operators = Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PY
echo "import name_torchvision_operators" > "$packages/name_torchvision_operators.pth"

OFFLINE_MODE=True "$dir/bin/python" -W ignore -c "import inference_models, transformers, einops, peft"
touch "$dir/.ready"
echo "$dir is ready"
