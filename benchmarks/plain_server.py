"""The usual tutorial: one picture at a time under a lock, eager float32, full decode.

`python benchmarks/plain_server.py PORT FILE...` indexes the files in memory, then serves /search.
"""

from __future__ import annotations

import io
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from torchvision import models, transforms

PREPARE = transforms.Compose(
    [
        transforms.Resize((224, 224)),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def main() -> None:
    """Loads the network, indexes, serves."""
    port, *files = sys.argv[1:]
    torch.manual_seed(0)
    network = models.resnet50(weights=None).eval()
    network.fc = torch.nn.Identity()
    lock = threading.Lock()

    def embed(data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
        with lock, torch.no_grad():
            image = Image.open(io.BytesIO(data)).convert("RGB")
            vector = network(PREPARE(image).unsqueeze(0))[0].numpy()
        return np.asarray(vector / np.linalg.norm(vector))

    gallery = np.stack([embed(Path(file).read_bytes()) for file in files])  # (N, 2048)
    app = FastAPI()

    @app.post("/search")
    def search(file: UploadFile) -> list[dict[str, Any]]:
        scores = gallery @ embed(file.file.read())
        best = np.argsort(-scores)[:10]
        return [{"id": files[place], "score": float(scores[place])} for place in best]

    uvicorn.run(app, port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
