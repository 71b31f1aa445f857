"""Two networks side by side: a collection moves to efficientnet_lite0 while both are searched."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lookalike import Client
from tests.models.pictures import draw

RESNET: dict[str, Any] = {
    "model": "resnet18",
    "weights": "random",
    "input_size": 32,
    "precision": "float32",
    "runtime": "torch",
}
LITE: dict[str, Any] = {"model": "efficientnet_lite0", "weights": "IMAGENET1K_V1", "input_size": 64}


def test_a_collection_moves_from_a_resnet_to_lite0_while_it_is_searched(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(40):
        draw(seed).save(folder / f"{seed:02}.png")
    with Client(tmp_path / "data", cache_dir=tmp_path / "cache", **RESNET) as client:
        for name in ("shop", "other"):
            client.index(folder, collection=name)

        def best(name: str) -> tuple[str, str]:
            found = client.search(folder / "07.png", k=3, collection=name)
            return found.model.name, found.matches[0].filename

        with ThreadPoolExecutor(1) as pool:
            moving = pool.submit(client.reembed, "shop", model=LITE)
            seen = {best("shop")}
            while not moving.done():
                seen |= {best("shop"), best("other")}
            moving.result()
        assert seen <= {("resnet18", "07.png"), ("efficientnet_lite0", "07.png")}
        assert best("shop") == ("efficientnet_lite0", "07.png")
        assert best("other") == ("resnet18", "07.png")
    with Client(tmp_path / "data", cache_dir=tmp_path / "cache", **RESNET) as client:
        assert client.search(folder / "09.png", collection="shop").model.dim == 1280
        assert client.search(folder / "09.png", collection="other").model.dim == 512
