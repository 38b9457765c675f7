"""Runs notebooks and stores their outputs in them: `python tests/notebooks/store.py [FILE ...]`, by default all.

What a reader sees is of a run in full. In the metadata beside it is what a run on little of everything says
in words and numbers: the tests do that run again. Both are of the same code, whose hash is kept too.
"""

import base64
import hashlib
import io
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[2] / "notebooks"
WIDTH, COLORS = 800, 96  # of a picture
MOST_HTML = 30_000  # characters: a program or a table has less, and the browser of a data set more
OF_PICTURES = re.compile(r"^<Figure size .*>$|^<Axes: .*>$")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def fingerprint(notebook):
    """Of all the code: outputs stored for other code are out of date."""
    code = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def executed(path, *, small):
    """A notebook, run from top to bottom."""
    notebook = nbformat.read(path, as_version=4)
    environment = {name: value for name, value in os.environ.items() if name != "DPM_SMALL"}
    client = NotebookClient(notebook, timeout=3600, kernel_name="python3")
    client.execute(env=environment | ({"DPM_SMALL": "1"} if small else {}))
    return notebook


def said(notebook):
    """What each cell prints or returns in words; pictures, programs' listings and warnings are none."""
    return ["".join(map(_words, cell.outputs)) for cell in code_cells(notebook)]


def _words(output):
    if output.get("name") == "stdout":
        return output["text"]
    data = output.get("data", {})
    text = data.get("text/markdown", data.get("text/plain", ""))
    return "" if OF_PICTURES.match(text.strip()) or "image/png" in data else f"{text}\n" * bool(text)


def shrunk(picture):
    """A PNG of at most 800 points' width in a few colours."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.quantize(COLORS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, format="png", optimize=True)
    return file.getvalue()


def light(output):
    """An output without what is large: pictures in a few colours, and words instead of pages of HTML."""
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = base64.b64encode(shrunk(base64.b64decode(data["image/png"]))).decode()
    if "text/plain" in data and len(data.get("text/html", "")) > MOST_HTML:
        del data["text/html"]
    data.pop("text/latex", None)
    output.get("metadata", {}).clear()
    return output


def joined(outputs):
    """Outputs with what is printed in one piece, however it came; progress bars and warnings are left out."""
    kept = []
    for output in outputs:
        if output.get("name") == "stdout" and kept and kept[-1].get("name") == "stdout":
            kept[-1]["text"] += output["text"]
        elif output.get("name") != "stderr":
            kept.append(output)
    return kept


def store(path):
    """Writes a notebook with its outputs."""
    little, notebook = executed(path, small=True), executed(path, small=False)
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)
        cell.outputs = [light(output) for output in joined(cell.outputs)]
    notebook.metadata = {
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": {"name": "python"},
        "outputs_of": fingerprint(notebook),
        "said_of_little": said(little),
    }
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        store(path)
