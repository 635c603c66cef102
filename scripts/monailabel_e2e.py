"""The client of monailabel_e2e.sh: writes the studies, and checks bundles in a running server.

usage: monailabel_e2e.py data --output DIR
       monailabel_e2e.py port
       monailabel_e2e.py check --url URL --pid PID --studies DIR --models A,B --output DIR

Every answer of the server is compared, voxel by voxel, with that of `python -m monai.bundle run`.
Arrays are (x, y[, z]) as stored, or (rows, columns) for PNG images.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import requests
import torch
from PIL import Image

STARTUP_SECONDS = 180
TASK_SECONDS = 300
REQUEST_SECONDS = 120
NUM_STUDIES = 4
# The stored axes are z, x, y and some are flipped; spacings differ, so that any plan resamples.
# (x, y, z) spacing in mm, signs of the stored axes, and a rotation about z in degrees.
GRIDS = (
    ((0.8, 0.8, 3.0), (-1, 1, 1), 0),
    ((1.1, 1.1, 2.5), (1, -1, -1), 0),
    ((0.9, 1.0, 3.5), (1, 1, -1), 15),
    ((0.7, 0.7, 3.0), (-1, -1, 1), 0),
)


class CheckError(Exception):
    """The server, or a bundle in it, did not do what it should."""


def expect(claim: bool, message: str) -> None:
    """Raise a CheckError unless the claim holds."""
    if not claim:
        raise CheckError(message)


@dataclass(frozen=True)
class Server:
    """A running MONAI Label server and the folder of its studies."""

    url: str
    pid: int
    studies: Path

    def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: dict | None = None,
        file: Path | None = None,
    ) -> requests.Response:
        """The answer to a request; an error status is a CheckError."""
        files = None if file is None else {"label": (file.name, file.read_bytes())}
        answer = requests.request(
            method,
            f"{self.url}{path}",
            params=query,
            json=body,
            files=files,
            timeout=REQUEST_SECONDS,
        )
        expect(answer.ok, f"{method} {path} answers {answer.status_code}: {answer.text[:2000]}")
        return answer

    def images(self) -> dict[str, Path]:
        """The studies by MONAI Label's name for them."""
        files = (path for path in sorted(self.studies.iterdir()) if is_image(path))
        return {stem(path): path for path in files}


@dataclass(frozen=True)
class Bundle:
    """A bundle that the server uses."""

    path: Path

    @property
    def name(self) -> str:
        """MONAI Label's name for it."""
        return self.path.name

    @property
    def weights_file(self) -> Path:
        """The one file of weights."""
        return self.path / "models" / "model.pt"

    def metadata(self) -> dict:
        """What configs/metadata.json says."""
        return json.loads((self.path / "configs" / "metadata.json").read_text(encoding="utf-8"))

    def classes(self) -> dict[int, str]:
        """Label values and their names, background included."""
        names = self.metadata()["network_data_format"]["outputs"]["pred"]["channel_def"]
        return {int(value): name for value, name in names.items()}


def is_image(path: Path) -> bool:
    """Whether MONAI Label takes a file for a study."""
    return path.name.endswith((".nii.gz", ".nii", ".png")) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """MONAI Label's name for a study."""
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def texture(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A smooth random field with mean 0 and standard deviation 1."""
    frequencies = np.meshgrid(*(np.fft.fftfreq(size) for size in shape), indexing="ij")
    window = np.exp(-45 * sum(axis**2 for axis in frequencies))
    noise = np.random.default_rng(seed).normal(size=shape)
    field = np.fft.ifftn(np.fft.fftn(noise) * window).real
    return (field - field.mean()) / field.std()


def stored_affine(index: int) -> np.ndarray:
    """RAS+ affine in mm of volume ``index``, whose stored axes are z, x, y."""
    spacing, signs, degrees = GRIDS[index]
    turn = math.radians(degrees)
    rotation = np.array(
        [
            [math.cos(turn), -math.sin(turn), 0],
            [math.sin(turn), math.cos(turn), 0],
            [0, 0, 1],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = (rotation * spacing)[:, [2, 0, 1]] * signs
    affine[:3, 3] = (11, -7, 5)
    return affine


def write_volume(output: Path, index: int) -> None:
    """A NIfTI study and its label, a threshold of its own intensities."""
    field = texture((12 + index, 44, 34 - 2 * index), index)
    affine = stored_affine(index)
    name = f"Fall é {index}.nii" + (".gz" if index else "")
    image = nibabel.Nifti1Image((400 + 150 * field).astype(np.int16), affine)
    nibabel.save(image, output / "studies" / "nifti" / name)
    label = np.digitize(field, [0.0, 0.8]).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(label, affine), output / "truth" / "nifti" / name)


def write_image(output: Path, kind: str, index: int) -> None:
    """A PNG that is wider than high, and its label."""
    field = texture((40 + 3 * index, 68), index)
    values = np.clip(128 + 50 * field, 0, 255).astype(np.uint8)
    pixels = values if kind == "gray" else np.stack([values, 255 - values, values // 2], axis=-1)
    Image.fromarray(pixels).save(output / "studies" / kind / f"cell_{index}.png")
    label = (field > 0).astype(np.uint8)
    Image.fromarray(label).save(output / "truth" / kind / f"cell_{index}.png")


def write_data(output: Path) -> None:
    """The studies of all servers, and apart from them their labels."""
    for folder in ("studies", "truth"):
        for kind in ("nifti", "gray", "rgb"):
            (output / folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(NUM_STUDIES):
        write_volume(output, index)
        for kind in ("gray", "rgb"):
            write_image(output, kind, index)


def load(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Voxels as they are stored, and the affine of a NIfTI."""
    if path.name.endswith((".nii", ".nii.gz")):
        image = nibabel.load(path)
        return np.asarray(image.dataobj), image.affine
    return np.asarray(Image.open(path)), None


def run_bundle(bundle: Bundle, studies: Path, output: Path) -> dict[str, Path]:
    """Infer all studies with MONAI alone; returns the label file of each."""
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", str(bundle.path / "configs" / "inference.json")]
    command += ["--bundle_root", str(bundle.path), "--dataset_dir", str(studies)]
    command += ["--output_dir", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"{bundle.name}: monai.bundle run fails:\n{done.stderr[-4000:]}")
    return {stem(path): path for path in output.iterdir()}


def free_port() -> int:
    """A port of the loopback that nobody listens to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_ready(server: Server) -> dict:
    """What /info/ says, once the server answers."""
    end = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < end:
        try:
            os.kill(server.pid, 0)
        except ProcessLookupError as error:
            raise CheckError("the server ended before it was ready") from error
        try:
            return server.request("GET", "/info/").json()
        except requests.ConnectionError:
            time.sleep(0.5)
    raise CheckError(f"the server was not ready after {STARTUP_SECONDS} s")


def wait_for_task(server: Server, kind: str) -> None:
    """Wait for a training or scoring that runs in the background."""
    end = time.monotonic() + TASK_SECONDS
    while time.monotonic() < end:
        task = server.request("GET", f"/{kind}/").json()
        if task["status"] == "DONE":
            return
        if task["status"] not in ("SUBMITTED", "RUNNING"):
            lines = "\n".join(task.get("details", []))
            raise CheckError(f"{kind} ended with {task['status']}:\n{lines}")
        time.sleep(0.5)
    raise CheckError(f"{kind} was not done after {TASK_SECONDS} s")


def check_info(bundle: Bundle, info: dict) -> None:
    """/info lists the model with the labels of the bundle."""
    for section in ("models", "trainers", "scoring"):
        expect(bundle.name in info[section], f"{bundle.name} is not in {section} of /info")
    model = info["models"][bundle.name]
    # MONAI Label writes names in lower case and leaves the background out.
    names = {name.lower(): value for value, name in bundle.classes().items() if value}
    expect(model["labels"] == names, f"/info lists {model['labels']} instead of {names}")
    expect(model["type"] == "segmentation", f"{bundle.name} is taken for {model['type']}")
    files = model["config"]["model_filename"]
    expect(files == ["model.pt"], f"{bundle.name} offers the weights {files}")


def ask_label(server: Server, bundle: Bundle, image: str, folder: Path) -> Path:
    """Infer one study; returns the file that the server answers."""
    query = {"image": image, "output": "image"}
    answer = server.request("POST", f"/infer/{bundle.name}", query=query)
    sent = answer.headers["content-disposition"].rsplit("filename=", 1)[1].strip('"')
    path = folder / (image + "".join(Path(sent).suffixes[-2:]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(answer.content)
    return path


def check_infer(server: Server, bundle: Bundle, output: Path, step: str) -> dict[str, np.ndarray]:
    """The server's labels are those of MONAI alone, on the grid of the image."""
    reference = run_bundle(bundle, server.studies, output / "reference" / bundle.name / step)
    images = server.images()
    expect(set(reference) == set(images), f"monai.bundle run wrote {sorted(reference)}")
    labels = {}
    for image, image_path in images.items():
        case = f"{bundle.name}, {image_path.name}"
        answer = ask_label(server, bundle, image, output / "answers" / bundle.name / step)
        label, affine = load(answer)
        expected, expected_affine = load(reference[image])
        pixels, image_affine = load(image_path)
        grid = pixels.shape[: 2 if image_affine is None else 3]
        expect(label.shape == grid, f"{case}: label of {label.shape} for an image of {grid}")
        expect(label.dtype == np.uint8, f"{case}: label of {label.dtype} instead of uint8")
        values = set(np.unique(label).tolist())
        expect(values <= set(bundle.classes()), f"{case}: label with the values {values}")
        if affine is not None:
            expect(np.allclose(affine, image_affine, atol=1e-4), f"{case}: affine\n{affine}")
            expect(np.allclose(affine, expected_affine, atol=1e-4), f"{case}: affine\n{affine}")
        unequal = int((label != expected).sum())
        expect(unequal == 0, f"{case}: {unequal} of {label.size} voxels differ from monai.bundle")
        labels[image] = label
    # Equality of constant labels would say nothing about axes.
    mixed = sum(len(np.unique(label)) > 1 for label in labels.values())
    expect(step != "untrained" or mixed > 0, f"{bundle.name}: all labels are constant")
    print(f"{bundle.name}, {step}: {len(labels)} labels equal those of monai.bundle run")
    return labels


def check_active_learning(server: Server, bundle: Bundle) -> dict[str, float]:
    """Strategies name a study; scoring gives each unlabeled study a finite score."""
    images = server.images()
    for strategy in ("random", "first"):
        sample = server.request("POST", f"/activelearning/{strategy}", body={}).json()
        expect(sample.get("id") in images, f"{strategy} answers {sample}")
    server.request("POST", f"/scoring/{bundle.name}", body={"simulation_size": 2})
    wait_for_task(server, "scoring")
    scores = {}
    for image in images:
        # The task is a process of its own: the server learns its scores from the file it wrote.
        end = time.monotonic() + 20
        while image not in scores and time.monotonic() < end:
            info = server.request("GET", "/datastore/image/info", query={"image": image}).json()
            if "epistemic_entropy" in info:
                scores[image] = info["epistemic_entropy"]
            else:
                time.sleep(0.5)
    expect(set(scores) == set(images), f"{bundle.name}: only {sorted(scores)} have a score")
    expect(all(map(math.isfinite, scores.values())), f"{bundle.name}: scores {scores}")
    print(f"{bundle.name}: {len(scores)} studies scored, the next one named")
    return scores


def check_label_next(server: Server, bundle: Bundle, output: Path) -> dict[str, float]:
    """The server's strategy names the studies in the order of label-next; returns their scores."""
    folder = output / "next" / bundle.name
    command = [sys.executable, "-m", "monai_xtiny", "label-next", str(bundle.path)]
    command += [str(server.studies), "--output", str(folder), "--untrained"]
    done = subprocess.run(
        [*command, "--server", server.url], capture_output=True, text=True, check=False
    )
    expect(done.returncode == 0, f"{bundle.name}: label-next fails:\n{done.stderr[-4000:]}")
    ranked = json.loads((folder / "label_next.json").read_text(encoding="utf-8"))["cases"]
    scores = {stem(Path(case["files"][0])): case["score"] for case in ranked}
    order = list(scores)
    expect(set(order) == set(server.images()), f"{bundle.name}: label-next ranks {order}")
    # A study that was named is named again only after the others.
    named = [
        server.request("POST", "/activelearning/epistemic", body={}).json()["id"] for _ in order
    ]
    expect(named == order, f"{bundle.name}: the server names {named}, label-next {order}")
    print(f"{bundle.name}: the server names its {len(order)} studies in the order of label-next")
    return scores


def label_studies(server: Server, truth: Path, count: int) -> None:
    """Save the true labels of the first ``count`` studies, as an annotator would."""
    for image, path in list(server.images().items())[:count]:
        query = {"image": image, "tag": "final"}
        server.request("PUT", "/datastore/label", query=query, file=truth / path.name)
    completed = server.request("GET", "/info/").json()["datastore"]["completed"]
    expect(completed == count, f"{completed} studies are labeled instead of {count}")


def check_train(server: Server, bundle: Bundle) -> None:
    """One epoch on the labeled studies renews models/model.pt, and nothing else is there."""
    before = torch.load(bundle.weights_file, weights_only=True)
    former = bundle.weights_file.read_bytes()
    server.request("POST", f"/train/{bundle.name}", body={"max_epochs": 1, "device": "cpu"})
    wait_for_task(server, "train")
    files = [path.name for path in bundle.weights_file.parent.iterdir()]
    expect(files == ["model.pt"], f"{bundle.name}: models/ holds {files} after training")
    expect(bundle.weights_file.read_bytes() != former, f"{bundle.name}: model.pt is as it was")
    after = torch.load(bundle.weights_file, weights_only=True)
    shapes = [{name: tuple(v.shape) for name, v in state.items()} for state in (before, after)]
    expect(shapes[0] == shapes[1], f"{bundle.name}: model.pt has other tensors after training")
    moved = sum(not torch.equal(before[name], after[name]) for name in before)
    expect(moved > len(before) / 2, f"{bundle.name}: only {moved} of {len(before)} tensors moved")


def check_server(server: Server, bundles: list[Bundle], output: Path) -> None:
    """All checks of the bundles of one server."""
    info = wait_until_ready(server)
    former = {}
    for bundle in bundles:
        check_info(bundle, info)
        former[bundle.name] = check_infer(server, bundle, output, "untrained")
        # Before the server's own scoring, which must leave the scores alone, and after it.
        is_before, is_after = server.studies.name == "rgb", bundle.name.startswith("volumes")
        ranked = check_label_next(server, bundle, output) if is_before else {}
        scores = check_active_learning(server, bundle)
        same = all(abs(scores[image] - score) < 1e-5 for image, score in ranked.items())
        expect(same, f"{bundle.name}: the server's own scoring changed {ranked} to {scores}")
        if is_after:
            check_label_next(server, bundle, output)
    for count in (1, 3):
        label_studies(server, output / "truth" / server.studies.name, count)
        for bundle in bundles:
            check_train(server, bundle)
            labels = check_infer(server, bundle, output, f"trained on {count}")
            old = former[bundle.name]
            changed = sum(int((labels[image] != old[image]).sum()) for image in labels)
            expect(changed > 0, f"{bundle.name}: training on {count} changed no label")
            former[bundle.name] = labels


def main() -> None:
    """Write the studies, or check a server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    data, check = commands.add_parser("data"), commands.add_parser("check")
    commands.add_parser("port")
    for command in (data, check):
        command.add_argument("--output", type=Path, required=True)
    check.add_argument("--url", required=True)
    check.add_argument("--pid", type=int, required=True)
    check.add_argument("--studies", type=Path, required=True)
    check.add_argument("--models", required=True)
    arguments = parser.parse_args()
    if arguments.command == "port":
        print(free_port())
        return
    output = arguments.output
    if arguments.command == "data":
        write_data(output)
        return
    folder = output / "app" / "monaibundle" / "model"
    bundles = [Bundle(folder / name) for name in arguments.models.split(",")]
    server = Server(arguments.url, arguments.pid, arguments.studies)
    try:
        check_server(server, bundles, output)
    except (CheckError, requests.RequestException) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
