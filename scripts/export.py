"""Hand trained weights to other programs: timm, ONNX Runtime, torch.export, or a page in the browser.

    python scripts/export.py --weights weights/vit-t-mae --format web --output-dir runs/page
    python -m http.server --directory runs/page            # then open http://localhost:8000

    python scripts/export.py --weights runs/mae --format onnx --output-dir runs/onnx       # needs onnx, onnxscript
    python scripts/export.py --weights runs/finetune --format torch --output-dir runs/pt2
    python scripts/export.py --weights runs/mae --format timm --output-dir runs/timm

An autoencoder gives the encoder (images -> features) and the reconstruction (uint8 images, mask -> images in [0, 1]); a
classifier gives uint8 images -> probabilities. Normalisation is inside, batches may have any size, and outputs agree
with torch's to 1e-4. Takes half a minute on a CPU. The page needs npm once, for onnxruntime-web.
"""

from tinymae.commands.cli import run_command

if __name__ == "__main__":
    run_command("export", description=__doc__)
