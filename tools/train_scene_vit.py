"""Train tiny vision transformers on synthetic scenes and export them to ONNX.

The scenes (``tools/scenes.py``) have objects at known places, so that a saliency map of these
networks can be right or wrong. Run it in the environment of ``tools/export-requirements.txt``;
``textures`` comes first, the others start from its weights:

    python tools/train_scene_vit.py textures tests/assets/scene-vit
    python tools/train_scene_vit.py textures-mean tests/assets/scene-vit
    python tools/train_scene_vit.py shapes tests/assets/scene-vit
    python tools/train_scene_vit.py shapes tests/assets/scene-vit --evaluate
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from export_zoo import import_torchvision
from scenes import HELD_OUT_SEED, IMAGE_SIZE, TASKS, Scenes, make_scenes
from torch.nn import functional

PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
BATCH = 64
REPORT_EVERY = 50  # steps
PROBE_STEPS = 500


@dataclass(frozen=True)
class Recipe:
    """How a network is made.

    task: one of `scenes.TASKS`.
    pooling: "token" reads the class token, "avg" the mean over the patches' tokens.
    steps: batches of 64 scenes.
    easy_steps: how many of them, at first, have easy scenes: one object and no distractors.
        Without them the loss may stay on its first plateau.
    ramp_steps: over how many further steps the share of usual scenes grows to one.
    start: the network whose weights are the first ones; None stands for random weights.
    waves: whether the position embedding starts from waves instead: where patches are to each
        other matters for the task.
    seed: of the weights and of the training scenes.
    """

    task: str
    pooling: str
    steps: int
    easy_steps: int = 0
    ramp_steps: int = 1
    start: str | None = None
    waves: bool = False
    learning_rate: float = 2e-3
    seed: int = 0


RECIPES = {
    "textures": Recipe("textures", "token", steps=750, easy_steps=200),
    "textures-mean": Recipe("textures", "avg", steps=200, start="textures", seed=1),
    "shapes": Recipe(
        "shapes",
        "token",
        steps=2400,
        easy_steps=700,
        ramp_steps=700,
        start="textures",
        waves=True,
        seed=2,
    ),
}


def build(recipe: Recipe) -> torch.nn.Module:
    """Return the vision transformer with random weights."""
    import_torchvision()
    import timm  # imports torchvision in its turn

    torch.manual_seed(recipe.seed)
    return timm.models.VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        embed_dim=48,
        depth=6,
        num_heads=3,
        mlp_ratio=2,
        num_classes=len(TASKS[recipe.task].classes),
        global_pool=recipe.pooling,
        class_token=recipe.pooling == "token",
    )


def start_from(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Take over what fits of another network's weights.

    Without a class token, its position and value go; the last norm, then behind the pooling, is
    called ``fc_norm``.
    """
    own = network.state_dict()
    positions = weights["pos_embed"][:, -own["pos_embed"].shape[1] :]
    taken = dict(weights, pos_embed=positions)
    if "fc_norm.weight" in own:
        for kind in ("weight", "bias"):
            taken[f"fc_norm.{kind}"] = taken.pop(f"norm.{kind}")
    fitting = {name: value for name, value in taken.items()
               if name in own and value.shape == own[name].shape}  # fmt: skip
    network.load_state_dict(own | fitting)


def waves() -> torch.Tensor:
    """Return position embeddings [1,1+100,48]: sines of a patch's row, and of its column.

    Twelve wavelengths of 5 to 40 patches, as sine and cosine; zero for the class token.
    """
    wavelengths = torch.logspace(math.log10(5), math.log10(40), 12)
    angles = torch.arange(GRID)[:, None] * 2 * math.pi / wavelengths
    line = 0.2 * torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, GRID, -1), line[None].expand(GRID, -1, -1)
    patches = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return torch.cat([torch.zeros(1, patches.shape[1]), patches])[None]


def scores(network: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Return the logits [n,K] of images [n,3,80,80]."""
    network.eval()
    with torch.no_grad():
        batches = torch.from_numpy(images).split(200)
        return torch.cat([network(batch) for batch in batches]).numpy()


def accuracy(logits: np.ndarray, truth: Scenes) -> float:
    """Return the share of scenes whose highest logit is one of the classes present."""
    return float((truth.labels[np.arange(len(logits)), logits.argmax(1)] > 0).mean())


def training_scenes(recipe: Recipe, step: int) -> Scenes:
    """Make the scenes of one step: easy ones first, then a growing share of usual ones."""
    share = (step + 1 - recipe.easy_steps) / recipe.ramp_steps
    usual = round(BATCH * min(1.0, max(0.0, share)))
    seed = (recipe.seed, step)
    parts = []
    if usual:
        parts.append(make_scenes(recipe.task, usual, seed))
    if usual < BATCH:
        parts.append(make_scenes(recipe.task, BATCH - usual, seed, objects=1, distractors=False))
    return Scenes(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [boxes for part in parts for boxes in part.boxes],
    )


def train(network: torch.nn.Module, recipe: Recipe) -> None:
    """Train with AdamW and soft labels, and print how it goes."""
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.03)
    checks = [make_scenes(recipe.task, 300, (HELD_OUT_SEED, number), number) for number in (1, 2)]
    started = time.process_time()
    losses = []
    for step in range(recipe.steps):
        decay = 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * min(1, (step + 1) / 40) * decay + 2e-5
        scenes = training_scenes(recipe, step)
        network.train()
        logits = network(torch.from_numpy(scenes.images))
        loss = functional.cross_entropy(logits, torch.from_numpy(scenes.labels))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == recipe.steps:
            one, two = (accuracy(scores(network, check.images), check) for check in checks)
            print(
                f"step {step + 1}: {time.process_time() - started:.0f} CPU-seconds, "
                f"loss {np.mean(losses[-REPORT_EVERY:]):.3f}, "
                f"accuracy {one:.3f} with one object, {two:.3f} with two",
                flush=True,
            )


def export(network: torch.nn.Module, path: Path) -> None:
    """Write the network for one image, as PyTorch's TorchScript exporter does."""
    network.eval()
    image = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    torch.onnx.export(network, (image,), str(path), dynamo=False, opset_version=17,
                      input_names=["image"], output_names=["logits"])  # fmt: skip


def evaluate(path: Path, task: str) -> None:
    """Print the exported network's accuracy on held-out scenes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for objects in (1, 2):
        held_out = make_scenes(task, 1000, HELD_OUT_SEED, objects)
        logits = [session.run(None, {"image": image[None]})[0][0] for image in held_out.images]
        share = accuracy(np.array(logits), held_out)
        print(f"{path.name}: {share:.1%} of 1000 held-out scenes, objects in each: {objects}")


def single_patches(task: str, count: int, seed: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Return the patches of objects, one object a scene: what a classifier may see, and the truth.

    Returns:
        Inputs [m,192+100], the pixels of a patch and its place; classes [m]; scenes [m]. A patch
        counts where its centre is inside the object's box.
    """
    scenes = make_scenes(task, count, seed, objects=1)
    blocks = scenes.images.reshape(count, 3, GRID, PATCH_SIZE, GRID, PATCH_SIZE)
    patches = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(count, GRID * GRID, -1)
    centres = [(PATCH_SIZE * (np.array(cell) + 0.5)) for cell in np.ndindex(GRID, GRID)]
    inside = [[boxes[0].contains(*centre) for centre in centres] for boxes in scenes.boxes]
    scene, cell = np.nonzero(inside)
    inputs = np.hstack([patches[scene, cell], np.eye(GRID * GRID, dtype=np.float32)[cell]])
    return inputs, scenes.labels.argmax(1)[scene], scene


def probe(task: str) -> None:
    """Train a classifier of single patches, and print how much these tell about the class."""
    torch.manual_seed(0)
    hidden, classes = 512, len(TASKS[task].classes)
    network = torch.nn.Sequential(
        torch.nn.LazyLinear(hidden),
        torch.nn.GELU(),
        torch.nn.Linear(hidden, hidden),
        torch.nn.GELU(),
        torch.nn.Linear(hidden, classes),
    )
    network(torch.zeros(1, 3 * PATCH_SIZE**2 + GRID * GRID))  # makes the first layer's weights
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.03)
    for step in range(PROBE_STEPS):
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - step / PROBE_STEPS)
        inputs, truth, _ = single_patches(task, 128, (9, step))
        loss = functional.cross_entropy(network(torch.from_numpy(inputs)), torch.from_numpy(truth))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    inputs, truth, scene = single_patches(task, 2000, (HELD_OUT_SEED, 1))
    with torch.no_grad():
        chances = network(torch.from_numpy(inputs)).softmax(1).numpy()
    right, sure = chances.argmax(1) == truth, chances.max(1)
    surest = [np.flatnonzero(scene == one)[sure[scene == one].argmax()] for one in np.unique(scene)]
    print(
        f"{task}, classifier of single patches: {right.mean():.1%} of the objects' patches, "
        f"{right[surest].mean():.1%} of the objects by their surest patch, "
        f"{1 / classes:.1%} by chance"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES, help="which network")
    parser.add_argument("folder", type=Path, help="where NAME.onnx is, or will be")
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path("build/scene-vit"),
        help="where PyTorch's weights are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="train nothing; measure the network's accuracy, and that of single patches",
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    recipe = RECIPES[arguments.name]
    path = arguments.folder / f"{arguments.name}.onnx"
    if not arguments.evaluate:
        network = build(recipe)
        if recipe.start:
            start_from(network, torch.load(arguments.weights / f"{recipe.start}.pt"))
        if recipe.waves:
            network.pos_embed.data.copy_(waves())
        train(network, recipe)
        for folder in (arguments.weights, arguments.folder):
            folder.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), arguments.weights / f"{arguments.name}.pt")
        export(network, path)
    evaluate(path, recipe.task)
    if arguments.evaluate:
        probe(recipe.task)


if __name__ == "__main__":
    main()
