"""Train an image classifier on a folder of class folders, from Python.

The same as `foveal train images-halonet --data FOLDER --steps 30 ...`: a recipe, changed in a few
places, trained in a run folder that ends with checkpoints and results.

Prints:
    classes: circles, squares
    trained 30 steps on 54 pictures, held out 6
    right about ...% of the held-out pictures
    a new circle is probably: ...
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from foveal.recipes.config import load_recipe
from foveal.recipes.images.look import predict
from foveal.recipes.run import train


def draw(path: Path, shape: str, number: int) -> Path:
    picture = Image.new("RGB", (32, 32), (20 * (number % 5), 90, 60))
    left, size = 2 + number % 9, 10 + number % 11
    box = (left, left, left + size, left + size)
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if shape == "circles" else pen.rectangle)(box, fill=(250, 240, 120))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape in ("circles", "squares"):
            for number in range(30):
                draw(folder / "pictures" / shape / f"{number}.png", shape, number)
        recipe = load_recipe("images-halonet")
        recipe = replace(
            recipe,
            data=replace(recipe.data, path=str(folder / "pictures"), size=16, crop=0),
            optimizer=replace(recipe.optimizer, warmup_steps=5),
            training=replace(recipe.training, steps=30, time_budget=None, batch_size=16),
        )
        run, outcome = train(recipe, str(folder / "run"))
        print("classes:", ", ".join(json.loads((run / "classes.json").read_text())))
        print(f"trained {outcome.step} steps on 54 pictures, held out 6")
        print(f"right about {outcome.metrics['accuracy']:.0%} of the held-out pictures")
        (said,) = predict(run, [draw(folder / "new.png", "circles", 31)], top=1)
        print("a new circle is probably:", said.ranking[0][0])


if __name__ == "__main__":
    main()
